// From dtypes to kernels, from work to threads, and matrix products by the library that PyTorch links.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <memory>

#include "../common/arguments.h"
#include "kernels.h"

namespace icd::cpu {

// Calls f(begin, end) on threads that have at least about `kGrainWork` multiply-adds each.
template <typename F>
void in_parallel(int64_t items, int64_t work_per_item, const F& f) {
  constexpr int64_t kGrainWork = 1 << 15;
  const int64_t grain = std::max<int64_t>(1, kGrainWork / std::max<int64_t>(1, work_per_item));
  torch::stable::parallel_for(0, items, grain, f);
}

template <typename I, typename T>
const MapKernels<I, T>& map_kernels_for() {
  const Kernels& all = kernels();
  if constexpr (std::is_same_v<T, double>) {
    if constexpr (std::is_same_v<I, double>) return all.map_double;
    else if constexpr (std::is_same_v<I, float>) return all.map_float_in_double;
    else if constexpr (std::is_same_v<I, c10::Half>) return all.map_half_in_double;
    else return all.map_bfloat16_in_double;
  } else {
    if constexpr (std::is_same_v<I, float>) return all.map_float;
    else if constexpr (std::is_same_v<I, c10::Half>) return all.map_half;
    else return all.map_bfloat16;
  }
}

template <typename T>
const LogitKernels<T>& logit_kernels_for() {
  if constexpr (std::is_same_v<T, double>) return kernels().logits_double;
  else return kernels().logits_float;
}

// Calls f(I()) with the C++ type of a map that math in T reads or writes.
template <typename T, typename F>
void dispatch_map(ScalarType map, F f) {
  if (map == ScalarType::Float) f(float());
  else if (map == ScalarType::BFloat16) f(c10::BFloat16());
  else if (map == ScalarType::Half) f(c10::Half());
  else if constexpr (std::is_same_v<T, double>) f(double());
  else check(false, "features of ", map, " need math in float64");
}

inline Scales scales_of(const std::vector<int64_t>& scales) {
  return {.sizes = scales.data(), .count = static_cast<int64_t>(scales.size()), .cells = cell_count(scales)};
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* written(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// left · right, matrices of one dtype in any layout.
inline Tensor product(const Tensor& left, const Tensor& right) {
  const Tensor out = empty({left.size(0), right.size(1)}, left.scalar_type(), left);
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
  return out;
}

}  // namespace icd::cpu
