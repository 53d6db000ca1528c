// The math of one row: exponentials, the row KL and the derivatives of the normalisations (docs/definition.md).
// Scalar and branch-free, so that a loop over it vectorises on the CPU and a thread runs it on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "portable.h"

namespace icd {

// Smallest norm or standard deviation a logit vector is divided by.
template <typename T>
constexpr T kNormFloor = static_cast<T>(1e-12);

// exp(r) / 2^n in float's digits, where x = n log 2 + r. F is float or a vector of them. shifted: 1.5·2^23 + n, which
// adding the first to a float rounds to an integer in the low bits.
template <typename F>
ICD_HOST_DEVICE F exp_of_rest(F x, F& shifted) {
  shifted = x * 1.44269504f + 12582912.0f;
  const F n = shifted - 12582912.0f;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = F{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// The same in double's digits, with 1.5·2^52.
template <typename F>
ICD_HOST_DEVICE F exp_of_rest_in_double(F x, F& shifted) {
  shifted = x * 1.4426950408889634 + 6755399441055744.0;
  const F n = shifted - 6755399441055744.0;
  const F r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  F p = F{} + 1.6059043836821613e-10;  // 1/13! down to 1/2!
  p = p * r + 2.0876756987868100e-09;
  p = p * r + 2.5052108385441720e-08;
  p = p * r + 2.7557319223985893e-07;
  p = p * r + 2.7557319223985888e-06;
  p = p * r + 2.4801587301587302e-05;
  p = p * r + 1.9841269841269841e-04;
  p = p * r + 1.3888888888888889e-03;
  p = p * r + 8.3333333333333332e-03;
  p = p * r + 4.1666666666666664e-02;
  p = p * r + 1.6666666666666666e-01;
  p = p * r + 0.5;
  return p * (r * r) + r + 1.0;
}

// p · 2^n by p's exponent, kMantissa bits up: nothing may leave the normal numbers. Bits: as many integers as F has numbers.
template <int kMantissa, typename Bits, typename F>
ICD_HOST_DEVICE F scaled_by_exponent(F p, F shifted) {
  Bits bits, scale;
  std::memcpy(&bits, &p, sizeof(bits));
  std::memcpy(&scale, &shifted, sizeof(scale));
  bits += scale << kMantissa;  // the low bits of `shifted` are n; the shift drops the rest
  std::memcpy(&p, &bits, sizeof(bits));
  return p;
}

// exp(x) for |x| <= 80, within about one unit in the last place; F is float or a vector of them, Bits uint32_t or its.
template <typename Bits, typename F>
ICD_HOST_DEVICE F exp_bounded(F x) {
  F shifted;
  const F p = exp_of_rest(x, shifted);
  return scaled_by_exponent<23, Bits>(p, shifted);
}

// The same in double's digits; Bits: uint64_t.
template <typename Bits, typename F>
ICD_HOST_DEVICE F exp_bounded_in_double(F x) {
  F shifted;
  const F p = exp_of_rest_in_double(x, shifted);
  return scaled_by_exponent<52, Bits>(p, shifted);
}

// exp(x) for x <= 0, within about one unit in the last place; NaN stays NaN. Below the range it returns the smallest
// normal number instead of 0, which no sum of probabilities can tell apart.
ICD_HOST_DEVICE float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  float shifted;
  const float p = exp_of_rest(x < -87.3365f ? -87.3365f : x, shifted);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const uint32_t scale_bits = (bits + 127u) << 23;  // the low bits of `bits` are n; the shift drops the rest
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return p * scale;
#endif
}

ICD_HOST_DEVICE double exp_nonpositive(double x) {
#if defined(__CUDA_ARCH__)
  return exp(x);
#else
  double shifted;
  const double p = exp_of_rest_in_double(x < -708.39 ? -708.39 : x, shifted);
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const uint64_t scale_bits = (bits + 1023u) << 52;
  double scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return p * scale;
#endif
}

// e^d - 1 - d where |d| <= 1/8, by its series: the form that loses no digits when two rows are nearly equal.
ICD_HOST_DEVICE float exp_remainder_series(float d) {
  float p = 1.0f / 5040.0f;
  p = p * d + 1.0f / 720.0f;
  p = p * d + 1.0f / 120.0f;
  p = p * d + 1.0f / 24.0f;
  p = p * d + 1.0f / 6.0f;
  p = p * d + 0.5f;
  return p * (d * d);
}

ICD_HOST_DEVICE double exp_remainder_series(double d) {
  double p = 1.0 / 479001600.0;
  p = p * d + 1.0 / 39916800.0;
  p = p * d + 1.0 / 3628800.0;
  p = p * d + 1.0 / 362880.0;
  p = p * d + 1.0 / 40320.0;
  p = p * d + 1.0 / 5040.0;
  p = p * d + 1.0 / 720.0;
  p = p * d + 1.0 / 120.0;
  p = p * d + 1.0 / 24.0;
  p = p * d + 1.0 / 6.0;
  p = p * d + 0.5;
  return p * (d * d);
}

// One element's part of KL(p ‖ q) = Σ p (e^d - 1 - d), d = log q - log p. Equal to Σ p (log p - log q) since both rows
// sum to one, but every term is >= 0, so a small divergence is a sum of small terms and not a difference of large ones.
template <typename T>
ICD_HOST_DEVICE T kl_term(T p, T q, T d) {
  const T magnitude = d < T(0) ? -d : d;
  // Clamped, so that the branch not taken cannot overflow into the select; a NaN passes through both.
  const T near = magnitude > T(0.125) ? T(0.125) : d;
  const T series = p * exp_remainder_series(near);
  const T direct = (q - p) - p * d;
  return magnitude > T(0.125) ? direct : series;
}

// What a logit vector is divided by; a NaN stays NaN.
template <typename T>
ICD_HOST_DEVICE T floor_statistic(T statistic) {
  return statistic <= kNormFloor<T> ? kNormFloor<T> : statistic;
}

// Derivative by the raw logit z of what depends on the normalised logit h (normalize.h), at one element:
// (dh - mean_dh - h · inner)/statistic with mean_dh = centre · mean(dh), inner = spread² <h, dh> and statistic =
// spread · ‖u‖, or 1 where spread is 0. Below the floor the divisor is a constant.
template <typename T>
ICD_HOST_DEVICE T normalize_derivative(T dh, T h, T mean_dh, T inner, T statistic) {
  const bool floored = statistic <= kNormFloor<T>;
  return (dh - mean_dh - (floored ? T(0) : h * inner)) / floor_statistic(statistic);
}

}  // namespace icd
