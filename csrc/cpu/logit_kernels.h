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

// Sums over the classes are taken in float64: a z-score's rounding is magnified by exponents of up to K/temperature, and
// equal float32 terms, as of a one-hot row, all round the same way. Squares of float32 cannot overflow either.
template <typename T>
inline double sum_of(const T* row, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) sum += static_cast<double>(row[k]);
  return sum;
}

template <typename T>
inline double dot(const T* a, const T* b, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  return sum;
}

template <typename T>
inline double centred_square(const T* row, double mean, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) {
    const double centred = static_cast<double>(row[k]) - mean;
    sum += centred * centred;
  }
  return sum;
}

template <typename T>
void normalize(const Normalization& by, T* rows, int64_t classes, T* statistics, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* z = rows + row * classes;
    const double mean = by.centre == 0 ? 0 : by.centre * sum_of(z, classes) / static_cast<double>(classes);
    const double statistic = by.spread == 0 ? 1 : by.spread * std::sqrt(centred_square(z, mean, classes));
    const double share = 1 / floor_statistic(statistic);
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) z[k] = static_cast<T>((static_cast<double>(z[k]) - mean) * share);
    statistics[row] = static_cast<T>(statistic);
  }
}

template <typename T>
void normalize_backward(
    const Normalization& by, const T* normalized, const T* statistics, int64_t classes, T* grads, int64_t begin,
    int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* h = normalized + row * classes;
    T* dz = grads + row * classes;
    const double square = by.spread * by.spread;
    const T inner = square == 0 ? T(0) : static_cast<T>(square * dot(h, dz, classes));
    const double sum = by.centre == 0 ? 0 : by.centre * sum_of(dz, classes);
    const T mean = static_cast<T>(sum / static_cast<double>(classes)), statistic = statistics[row];
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) dz[k] = normalize_derivative(dz[k], h[k], mean, inner, statistic);
  }
}
