// The Gram matrix over few points (the cells of an image, or the images of a cell): a group's logits are read once, and
// its matrices, its rows' KL and the gradient stay in the cache.
// Included once for each instruction set, inside its namespace (kernels_table.h).

constexpr int64_t kTileRows = 4, kTileColumns = kFewRegisters ? 2 : 4;  // of a tile of products, kept in registers
constexpr int64_t kGradientRows = 8;                                    // whose sums are kept in registers

inline int64_t padded_points(int64_t points) { return (points + kGradientRows - 1) / kGradientRows * kGradientRows; }

// sums[c][r] += <row r of left, row c of right>
template <typename T>
inline void add_tile(const T* left, const T* right, int64_t width, double (&sums)[kTileColumns][kTileRows]) {
  constexpr int64_t step = kVectorLanes<T>;
  for (int64_t begin = 0; begin < width; begin += kFlush * step) {
    const int64_t end = width - begin < kFlush * step ? width : begin + kFlush * step;
    Vector<T> parts[kTileColumns][kTileRows] = {};
    for (int64_t k = begin; k < end; k += step) {
      Vector<T> rows[kTileRows];
      for (int64_t r = 0; r < kTileRows; ++r) rows[r] = load(left + r * width + k);
      for (int64_t c = 0; c < kTileColumns; ++c) {
        const Vector<T> column = load(right + c * width + k);
        for (int64_t r = 0; r < kTileRows; ++r) parts[c][r] += rows[r] * column;
      }
    }
    for (int64_t c = 0; c < kTileColumns; ++c) add_lanes<T>(parts[c], sums[c]);
  }
}

// One group. Its points' logits lie in whole vectors, 0 beyond the classes and beyond the points.
template <typename T>
struct PointGroup {
  int64_t points, classes, width;
  T *student, *teacher;            // [padded points, width]
  T *student_gram, *teacher_gram;  // [points, points]
  T* both;                         // [padded points, points], D + D^T
  T *weights, *losses;             // [points], of the rows

  static int64_t scratch(int64_t points, int64_t classes) {
    const int64_t padded = padded_points(points);
    return 2 * padded * pad(classes) + (2 * points + padded + 2) * points;
  }
  PointGroup(int64_t count, int64_t k, T* scratch) : points(count), classes(k), width(pad(k)) {
    const int64_t padded = padded_points(points);
    student = scratch;
    teacher = student + padded * width;
    student_gram = teacher + padded * width;
    teacher_gram = student_gram + points * points;
    both = teacher_gram + points * points;
    weights = both + padded * points;
    losses = weights + points;
    clear(student, 2 * padded * width);
    clear(both, padded * points);
  }

  // gram[i, j] = <z_i, z_j>, each computed once.
  void products(const T* rows, T* gram) const {
    for (int64_t i = 0; i < points; i += kTileRows) {
      for (int64_t j = i; j < points; j += kTileColumns) {
        double sums[kTileColumns][kTileRows] = {};
        add_tile(rows + i * width, rows + j * width, width, sums);
        for (int64_t c = 0; c < kTileColumns && j + c < points; ++c) {
          for (int64_t r = 0; r < kTileRows && i + r < points; ++r) {
            gram[(i + r) * points + j + c] = gram[(j + c) * points + i + r] = static_cast<T>(sums[c][r]);
          }
        }
      }
    }
  }

  // grad[i] = Σ_j (D_ij + D_ji) z_j, rows `stride` apart; the student's Gram is D.
  void gradient(T* grad, int64_t stride) const {
    constexpr int64_t step = kVectorLanes<T>;
    for (int64_t i = 0; i < points; ++i) {
      for (int64_t j = 0; j < points; ++j) both[i * points + j] = student_gram[i * points + j] + student_gram[j * points + i];
    }
    for (int64_t i = 0; i < points; i += kGradientRows) {
      const T* factors = both + i * points;
      for (int64_t k = 0; k < width; k += step) {
        Vector<T> sums[kGradientRows] = {};
        for (int64_t j = 0; j < points; ++j) {
          const Vector<T> z = load(student + j * width + k);
          for (int64_t r = 0; r < kGradientRows; ++r) sums[r] += factors[r * points + j] * z;
        }
        for (int64_t r = 0; r < kGradientRows && i + r < points; ++r) {
          T* to = grad + (i + r) * stride + k;
          if (k + step <= classes) {
            store(to, sums[r]);
          } else {
            for (int64_t lane = 0; k + lane < classes; ++lane) to[lane] = sums[r][lane];
          }
        }
      }
    }
  }
};

template <typename T>
int64_t points_scratch(int64_t points, int64_t classes) {
  return PointGroup<T>::scratch(points, classes);
}

template <typename T>
void points_gram(
    const T* student, const T* teacher, const Points& points, int64_t classes, T temperature, const T* row_weights,
    T* losses, T* grads, T* scratch, int64_t begin, int64_t end) {
  const int64_t count = points.count;
  PointGroup<T> group(count, classes, scratch);
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t p = 0; p < count; ++p) {
      const int64_t row = points.row(g, p);
      std::memcpy(group.student + p * group.width, student + row * classes, classes * sizeof(T));
      std::memcpy(group.teacher + p * group.width, teacher + row * classes, classes * sizeof(T));
      group.weights[p] = row_weights[row];
    }
    group.products(group.student, group.student_gram);
    group.products(group.teacher, group.teacher_gram);
    gram_rows(group.student_gram, group.teacher_gram, count, temperature, group.weights, group.losses, 0, count);
    for (int64_t p = 0; p < count; ++p) losses[points.row(g, p)] = group.losses[p];
    if (grads != nullptr) group.gradient(grads + points.row(g, 0) * classes, points.point_step * classes);
  }
}
