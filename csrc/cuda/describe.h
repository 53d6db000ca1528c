// Tensors and options as the kernels take them.
#pragma once

#include "../common/arguments.h"
#include "kernels.h"

namespace icd::cuda {

inline Dtype dtype_of(ScalarType type) {
  if (type == ScalarType::Double) return Dtype::float64;
  if (type == ScalarType::Float) return Dtype::float32;
  if (type == ScalarType::BFloat16) return Dtype::bfloat16;
  check(type == ScalarType::Half, "tensors must be float64, float32, bfloat16 or float16, got ", type);
  return Dtype::float16;
}

template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline Scales scales_of(const std::vector<int64_t>& sizes) {
  check(
      sizes.size() <= kMaxScales, "backend 'cuda' takes at most ", kMaxScales, " scales, got ", sizes.size());
  Scales scales = {static_cast<int32_t>(sizes.size()), 0, {}};
  int64_t cells = 0;
  for (size_t s = 0; s < sizes.size(); ++s) {
    check(sizes[s] <= kMostScale, "backend 'cuda' takes scales up to ", kMostScale, ", got ", sizes[s]);
    scales.sizes[s] = static_cast<int32_t>(sizes[s]);
    cells += sizes[s] * sizes[s];
  }
  check(cells < kMostScale * kMostScale, "backend 'cuda' takes fewer than 2^30 regions, got ", cells);
  scales.cells = static_cast<int32_t>(cells);
  return scales;
}

inline FeatureMap map_of(const Tensor& map) {
  check(
      map.size(2) <= kMostSide && map.size(3) <= kMostSide, "backend 'cuda' takes maps of up to ", kMostSide,
      " pixels each way, got ", map.sizes());
  return {
      .data = map.data_ptr(),
      .dtype = dtype_of(map.scalar_type()),
      .batch = map.size(0),
      .channels = map.size(1),
      .height = map.size(2),
      .width = map.size(3),
      .batch_stride = map.stride(0),
      .channel_stride = map.stride(1),
      .height_stride = map.stride(2),
      .width_stride = map.stride(3)};
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
  return {
      .data = matrix.data_ptr(),
      .dtype = dtype_of(matrix.scalar_type()),
      .row_stride = matrix.stride(0),
      .column_stride = matrix.stride(1)};
}

inline Matrix transposed(const Matrix& matrix) {
  return {
      .data = matrix.data,
      .dtype = matrix.dtype,
      .row_stride = matrix.column_stride,
      .column_stride = matrix.row_stride};
}

// A null pointer counts as 1.
inline Upstream upstream_of_loss(const Tensor* grad_loss) {
  if (grad_loss == nullptr) return {.data = nullptr, .dtype = Dtype::float32, .stride = 0};
  return {
      .data = grad_loss->data_ptr(),
      .dtype = dtype_of(grad_loss->scalar_type()),
      .stride = grad_loss->dim() == 0 ? 0 : grad_loss->stride(0)};
}

// Logits (B, K, N) in any layout, region by region as they are.
inline LogitSource source_of(const Tensor& logits) {
  return {
      .data = logits.data_ptr(),
      .dtype = dtype_of(logits.scalar_type()),
      .image_stride = logits.stride(0),
      .cell_stride = logits.stride(2),
      .class_stride = logits.stride(1),
      .splits = 1,
      .split_stride = 0,
      .bias = nullptr,
      .bias_dtype = Dtype::float32,
      .bias_stride = 0,
      .finest = 0};
}

}  // namespace icd::cuda
