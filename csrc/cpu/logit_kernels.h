// Local logits: coarse cells from fine ones, and the normalisations over the classes.
// Included once for each instruction set, inside its namespace (kernels_table.h).

// The classes are walked in chunks that stay in the cache while a coarse cell reads many fine ones.
constexpr int64_t kClassChunk = 512;

// Calls visit(n, fine cell, share) for every pair of a region and a fine cell under it.
template <typename T, typename Visit>
inline void for_each_cover(const Scales& scales, int64_t finest, Visit visit) {
  for_each_cell(scales, finest, finest, [&](int64_t n, Window rows, Window columns) {
    const T share = T(1) / static_cast<T>(length(rows) * length(columns));
    for (int64_t h = rows.start; h < rows.stop; ++h) {
      for (int64_t w = columns.start; w < columns.stop; ++w) visit(n, h * finest + w, share);
    }
  });
}

// to[0..count) += share · from[0..count)
template <typename T>
inline void add_scaled(T* to, const T* from, T share, int64_t count) {
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) to[k] += share * from[k];
}

template <typename T>
inline void clear(T* to, int64_t count) {
  for (int64_t k = 0; k < count; ++k) to[k] = T(0);
}

template <typename T>
void expand(
    const T* fine, int64_t finest, const Scales& scales, int64_t classes, T* logits, int64_t begin, int64_t end) {
  clear(logits + begin * scales.cells * classes, (end - begin) * scales.cells * classes);
  for (int64_t image = begin; image < end; ++image) {
    const T* from = fine + image * finest * finest * classes;
    T* to = logits + image * scales.cells * classes;
    for (int64_t k = 0; k < classes; k += kClassChunk) {
      const int64_t count = classes - k < kClassChunk ? classes - k : kClassChunk;
      for_each_cover<T>(scales, finest, [&](int64_t n, int64_t cell, T share) {
        add_scaled(to + n * classes + k, from + cell * classes + k, share, count);
      });
    }
  }
}

template <typename T>
void fold(
    const T* grad, int64_t finest, const Scales& scales, int64_t classes, T* grad_fine, int64_t begin, int64_t end) {
  clear(grad_fine + begin * finest * finest * classes, (end - begin) * finest * finest * classes);
  for (int64_t image = begin; image < end; ++image) {
    const T* from = grad + image * scales.cells * classes;
    T* to = grad_fine + image * finest * finest * classes;
    for (int64_t k = 0; k < classes; k += kClassChunk) {
      const int64_t count = classes - k < kClassChunk ? classes - k : kClassChunk;
      for_each_cover<T>(scales, finest, [&](int64_t n, int64_t cell, T share) {
        add_scaled(to + cell * classes + k, from + n * classes + k, share, count);
      });
    }
  }
}

template <typename T>
inline T sum_of(const T* row, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) sum += row[k];
  return sum;
}

template <typename T>
inline T dot(const T* a, const T* b, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) sum += a[k] * b[k];
  return sum;
}

template <typename T>
void normalize(Normalize mode, T* rows, int64_t classes, T* statistics, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* z = rows + row * classes;
    T statistic = 0, mean = 0;
    if (mode == Normalize::l2) {
      statistic = std::sqrt(dot(z, z, classes));
    } else {
      mean = sum_of(z, classes) / static_cast<T>(classes);
      T square = 0;
#pragma omp simd reduction(+ : square)
      for (int64_t k = 0; k < classes; ++k) square += (z[k] - mean) * (z[k] - mean);
      statistic = std::sqrt(square / static_cast<T>(classes));
    }
    const T divisor = floor_statistic(statistic);
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) z[k] = (z[k] - mean) / divisor;
    statistics[row] = statistic;
  }
}

template <typename T>
void normalize_backward(
    Normalize mode, const T* normalized, const T* statistics, int64_t classes, T* grads, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* h = normalized + row * classes;
    T* dz = grads + row * classes;
    T inner = dot(h, dz, classes), mean = 0;
    if (mode == Normalize::zscore) {
      mean = sum_of(dz, classes) / static_cast<T>(classes);
      inner /= static_cast<T>(classes);
    }
    const T statistic = statistics[row];
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) dz[k] = normalize_derivative(dz[k], h[k], mean, inner, statistic);
  }
}
