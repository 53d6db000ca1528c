// How many Chebyshev nodes a sum of exponentials needs: the a-priori bound of docs/linear_class_gram.md. Host only.
#pragma once

#include <cmath>
#include <cstdint>

namespace icd {

// The most nodes a sum is interpolated from; a wider span takes the exact sum.
constexpr int64_t kMostNodes = 768;

// The smallest multiple of 4 nodes with which interpolating e^{-R u}, u in [0, 1], errs by at most `error`; 0 where
// that is more than kMostNodes or the span is not a number. With a = R/2 the Chebyshev coefficients are 2 e^{-a} I_n(a),
// and I_n(a) <= exp(sqrt(a² + n²) - n asinh(n/a)); interpolation errs by at most twice the coefficients left out.
static inline int64_t chebyshev_nodes(double span, double error) {
  const double a = span / 2;
  if (!(a < 1e9)) return 0;
  if (a < 1e-9) return 4;
  const double gaussian = std::sqrt(2 * a * std::log(4 / error));  // the bound's small-n limit, from below
  for (int64_t n = static_cast<int64_t>(gaussian) / 4 * 4 + 4; n <= kMostNodes; n += 4) {
    const double x = static_cast<double>(n), slope = std::asinh(x / a);
    const double tail = 4 * std::exp(std::sqrt(a * a + x * x) - a - x * slope) / (1 - std::exp(-slope));
    if (tail <= error) return n;
  }
  return 0;
}

}  // namespace icd
