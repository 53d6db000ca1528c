// The class Gram's rows from their interpolated sums: what every backend does with them (docs/linear_class_gram.md).
#pragma once

#include "portable.h"

namespace icd {

// What interpolation may add to one exponential in A, so that the sum of K of them errs by no more than A rounds.
template <typename A>
ICD_HOST_DEVICE double exponential_error(int64_t classes) {
  return (sizeof(A) == 4 ? 1e-7 : 1e-15) / static_cast<double>(classes);
}

// Exponents up to this need no shift: e^60 times any number of classes is a float32.
constexpr double kMostExponent = 60;

// A mean row KL below this is a difference in which float32 exponentials leave too few digits.
constexpr double kCloseRows = 0.1;

// Whether every row's KL is surely that small: with difference = max|s - t| and sizes = max|s| + max|t|, an entry of
// (G_S - G_T)/τ is at most d = difference · sizes/τ, and a row KL at most d²/2.
ICD_HOST_DEVICE bool are_close(double difference, double sizes, double temperature) {
  const double d = difference * sizes / temperature;
  return d * d / 2 < kCloseRows;
}

// The KL of row k = Σ p (log p - log q) = x_t <y_t - top_t> - x_s <y_s - top_s> - log S_t + log S_s, means over p, with
// x = s/τ and t/τ, own = <y_t - top_t>, other = <y_s>, log_ratio = log S_s - log S_t.
ICD_HOST_DEVICE double row_kl(
    double s, double t, double inverse_temperature, double own, double other, double student_top, double log_ratio) {
  return (t * own - s * (other - student_top)) * inverse_temperature + log_ratio;
}

}  // namespace icd
