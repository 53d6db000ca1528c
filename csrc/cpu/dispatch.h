// From dtypes to kernels, and how many work items make it worth another thread.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>

#include "../common/arguments.h"
#include "kernels.h"

namespace icd::cpu {

// Work items for one thread so that a thread has at least about this many multiply-adds.
constexpr int64_t kGrainWork = 1 << 15;

inline int64_t grain(int64_t work_per_item) {
  return std::max<int64_t>(1, kGrainWork / std::max<int64_t>(1, work_per_item));
}

template <typename I, typename T>
const MapKernels<I, T>& map_kernels_for() {
  const Kernels& all = kernels();
  if constexpr (std::is_same_v<T, double>) {
    if constexpr (std::is_same_v<I, double>) return all.map_double;
    else if constexpr (std::is_same_v<I, float>) return all.map_float_in_double;
    else if constexpr (std::is_same_v<I, at::Half>) return all.map_half_in_double;
    else return all.map_bfloat16_in_double;
  } else {
    if constexpr (std::is_same_v<I, float>) return all.map_float;
    else if constexpr (std::is_same_v<I, at::Half>) return all.map_half;
    else return all.map_bfloat16;
  }
}

template <typename T>
const LogitKernels<T>& logit_kernels_for() {
  if constexpr (std::is_same_v<T, double>) return kernels().logits_double;
  else return kernels().logits_float;
}

// Calls f(I(), T()) with the C++ types of a map and of the math.
template <typename F>
void dispatch_map(at::ScalarType map, at::ScalarType math, F f) {
  dispatch_math(math, [&](auto t) {
    using T = decltype(t);
    if (map == at::kFloat) f(float(), t);
    else if (map == at::kBFloat16) f(at::BFloat16(), t);
    else if (map == at::kHalf) f(at::Half(), t);
    else if constexpr (std::is_same_v<T, double>) f(double(), t);
    else TORCH_CHECK_TYPE(false, "features of ", map, " need math in float64");
  });
}

inline Scales scales_of(const std::vector<int64_t>& scales) {
  return {scales.data(), static_cast<int64_t>(scales.size()), cell_count(scales)};
}

}  // namespace icd::cpu
