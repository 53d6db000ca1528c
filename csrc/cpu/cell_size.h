// What decides how a cell's class Gram is summed: how large its exponents are and how far apart its networks.
// Included once for each instruction set, inside its namespace (kernels_table.h).

constexpr int64_t kLeastSymmetric = 16, kMostSymmetric = 1024;  // classes: below it is slower, above it leaves the cache
constexpr double kCloseOfExponent = 0.0075;

struct CellSize {
  double exponent;    // the largest z²/temperature of both networks; infinity or NaN where not all are numbers
  double divergence;  // about the mean row's KL: half the variance of a row's difference (s_k s_j - t_k t_j)/temperature over
                      // j, which the KL of nearly even rows comes to, in the mean over k. For speed alone.
  bool surely_close;  // whether no row's KL reaches kCloseRows

  // Whether no row needs a shift.
  bool is_symmetric(int64_t classes) const {
    return classes >= kLeastSymmetric && classes <= kMostSymmetric && exponent <= kMostExponent;
  }
  // The mean row KL below which the sums without shifts leave too few digits: with float32 exponentials they err by about
  // 1e-8 (2 + exponent) (measured), so by 2e-6 of this.
  double close_rows() const {
    const double least = kCloseOfExponent * (2 + exponent);
    return least < kCloseRows ? least : kCloseRows;
  }
};

template <typename T>
CellSize size_of(const T* student, const T* teacher, int64_t classes, T temperature) {
  T s = 0, t = 0, ss = 0, st = 0, tt = 0, s_size = 0, t_size = 0, difference = 0;
#pragma omp simd reduction(+ : s, t, ss, st, tt) reduction(max : s_size, t_size, difference)
  for (int64_t k = 0; k < classes; ++k) {
    const T x = student[k], y = teacher[k], d = std::abs(x - y), x_size = std::abs(x), y_size = std::abs(y);
    s += x;
    t += y;
    ss += x * x;
    st += x * y;
    tt += y * y;
    s_size = x_size > s_size ? x_size : s_size;
    t_size = y_size > t_size ? y_size : t_size;
    difference = d > difference ? d : difference;
  }
  const double count = static_cast<double>(classes), tau = static_cast<double>(temperature);
  const double mean_s = s / count, mean_t = t / count, square_s = ss / count, square_t = tt / count, both = st / count;
  const double variance = square_s * (square_s - mean_s * mean_s) - 2 * both * (both - mean_s * mean_t) +
      square_t * (square_t - mean_t * mean_t);
  const double most = static_cast<double>(s_size > t_size ? s_size : t_size), total = static_cast<double>(ss + tt);
  return {
      .exponent = total - total == 0 ? most * most / tau : total,
      .divergence = variance / (2 * tau * tau),
      .surely_close = are_close(static_cast<double>(difference), static_cast<double>(s_size + t_size), tau)};
}
