// Chebyshev interpolation of sums of exponentials: how many nodes it takes, by the a-priori bound of
// docs/linear_class_gram.md, and the interval they lie on.
#pragma once

#include <cmath>

#include "portable.h"

namespace icd {

// The most nodes a sum is interpolated from; a wider span takes the exact sum.
constexpr int64_t kMostNodes = 768;
// Nodes are counted in multiples of this.
constexpr int64_t kNodeStep = 4;

// A number of nodes below which none suffices: the bound's limit for n far below a = span/2.
ICD_HOST_DEVICE int64_t fewest_nodes(double a, double error) {
  return static_cast<int64_t>(std::sqrt(2 * a * std::log(4 / error))) / kNodeStep * kNodeStep + kNodeStep;
}

// Whether n nodes interpolate e^{-2a u}, u in [0, 1], to within `error`. The Chebyshev coefficients are 2 e^{-a} I_n(a),
// and I_n(a) <= exp(sqrt(a² + n²) - n asinh(n/a)); interpolation errs by at most twice the coefficients left out.
ICD_HOST_DEVICE bool nodes_suffice(int64_t n, double a, double error) {
  const double x = static_cast<double>(n), slope = std::asinh(x / a);
  return 4 * std::exp(std::sqrt(a * a + x * x) - a - x * slope) / (1 - std::exp(-slope)) <= error;
}

// Whether a span a = span/2 is too narrow for the bound, or too wide (or not a number) for any number of nodes.
ICD_HOST_DEVICE bool is_narrow(double a) { return a < 1e-9; }
ICD_HOST_DEVICE bool is_wide(double a) { return !(a < 1e9); }

// The smallest multiple of kNodeStep nodes with which interpolating e^{-span u}, u in [0, 1], errs by at most `error`;
// 0 where that is more than kMostNodes or the span is not a number.
ICD_HOST_DEVICE int64_t chebyshev_nodes(double span, double error) {
  const double a = span / 2;
  if (is_wide(a)) return 0;
  if (is_narrow(a)) return kNodeStep;
  for (int64_t n = fewest_nodes(a, error); n <= kMostNodes; n += kNodeStep) {
    if (nodes_suffice(n, a, error)) return n;
  }
  return 0;
}

// An interval that nodes on [-1, 1] are mapped to.
struct Interval {
  double middle, half;
};

ICD_HOST_DEVICE double point_at(const Interval& interval, double node) {
  return interval.middle + interval.half * node;
}

}  // namespace icd
