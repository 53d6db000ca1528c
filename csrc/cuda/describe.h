// Tensors and options as the kernels take them.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "../common/arguments.h"
#include "kernels.h"

namespace icd::cuda {

template <typename T>
constexpr at::ScalarType scalar_type_of() {
  return std::is_same_v<T, double> ? at::kDouble : at::kFloat;
}

inline Dtype dtype_of(at::ScalarType type) {
  if (type == at::kDouble) return Dtype::float64;
  if (type == at::kFloat) return Dtype::float32;
  if (type == at::kBFloat16) return Dtype::bfloat16;
  TORCH_CHECK_TYPE(type == at::kHalf, "tensors must be float64, float32, bfloat16 or float16, got ", type);
  return Dtype::float16;
}

inline void check_devices(std::initializer_list<const Tensor*> tensors) {
  const c10::Device device = (*tensors.begin())->device();
  for (const Tensor* tensor : tensors) {
    TORCH_CHECK_VALUE(
        tensor == nullptr || tensor->device() == device, "all tensors must be on one device, got ", device, " and ",
        tensor->device());
  }
}

inline Scales scales_of(const std::vector<int64_t>& sizes) {
  constexpr int64_t kMost = 1 << 15;  // so that a grid's cells are counted in 32 bits
  TORCH_CHECK_VALUE(
      sizes.size() <= kMaxScales, "backend 'cuda' takes at most ", kMaxScales, " scales, got ", sizes.size());
  Scales scales = {static_cast<int32_t>(sizes.size()), 0, {}};
  int64_t cells = 0;
  for (size_t s = 0; s < sizes.size(); ++s) {
    TORCH_CHECK_VALUE(sizes[s] <= kMost, "backend 'cuda' takes scales up to ", kMost, ", got ", sizes[s]);
    scales.sizes[s] = static_cast<int32_t>(sizes[s]);
    cells += sizes[s] * sizes[s];
  }
  TORCH_CHECK_VALUE(cells < kMost * kMost, "backend 'cuda' takes fewer than 2^30 regions, got ", cells);
  scales.cells = static_cast<int32_t>(cells);
  return scales;
}

inline FeatureMap map_of(const Tensor& map) {
  return {
      map.data_ptr(), dtype_of(map.scalar_type()), map.size(0),   map.size(1),   map.size(2),
      map.size(3),    map.stride(0),               map.stride(1), map.stride(2), map.stride(3)};
}

inline int64_t element_size(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

// How a map's channels are taken: in vectors of 16 bytes, one by one, or by planes.
inline Access access_of(const FeatureMap& map) {
  const bool one_pixel = map.height * map.width == 1;
  if (map.channel_stride != 1 || (map.channels == 1 && !one_pixel)) return Access::planes;
  const int64_t size = element_size(map.dtype), count = kVectorBytes / size;
  const auto whole = [&](int64_t extent, int64_t stride) { return extent == 1 || stride % count == 0; };
  const bool aligned = reinterpret_cast<uintptr_t>(map.data) % kVectorBytes == 0 && map.channels % count == 0 &&
      whole(map.batch, map.batch_stride) && whole(map.height, map.height_stride) && whole(map.width, map.width_stride);
  return aligned ? Access::channel_vectors : Access::channels;
}

// Channels that a warp takes where they are innermost.
inline int64_t warp_channels(const FeatureMap& map, Access access) {
  return kWarp * (access == Access::channel_vectors ? kVectorBytes / element_size(map.dtype) : 1);
}

inline Matrix matrix_of(const Tensor& matrix) {
  return {matrix.data_ptr(), dtype_of(matrix.scalar_type()), matrix.stride(0), matrix.stride(1)};
}

inline Matrix transposed(const Matrix& matrix) {
  return {matrix.data, matrix.dtype, matrix.column_stride, matrix.row_stride};
}

inline Upstream upstream_of_loss(const Tensor& grad_loss) {
  return {grad_loss.data_ptr(), dtype_of(grad_loss.scalar_type()), grad_loss.dim() == 0 ? 0 : grad_loss.stride(0)};
}

inline Upstream no_upstream() { return {nullptr, Dtype::float32, 0}; }

// Logits (B, K, N) in any layout, region by region as they are.
inline LogitSource source_of(const Tensor& logits) {
  return {
      logits.data_ptr(), dtype_of(logits.scalar_type()), logits.stride(0), logits.stride(2), logits.stride(1), 1, 0,
      nullptr, Dtype::float32, 0, 0};
}

}  // namespace icd::cuda
