// What every kernel is written in: threads, warps, reductions in a fixed order, and elements of any dtype.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common/geometry.h"
#include "../common/row_math.h"
#include "kernels.h"

namespace icd::cuda {

#define ICD_DEVICE __device__ __forceinline__

constexpr unsigned kAllLanes = 0xffffffffu;

ICD_DEVICE int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
ICD_DEVICE int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

ICD_DEVICE int64_t ceil_divide(int64_t count, int64_t step) { return (count + step - 1) / step; }

// Sum over `width` neighbouring lanes (a power of 2), the same in each of them.
template <typename T>
ICD_DEVICE T sum_lanes(T value, int width = kWarp) {
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <typename T>
ICD_DEVICE T least_lanes(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other < value ? other : value;
  }
  return value;
}

template <typename T>
ICD_DEVICE T most_lanes(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Sum over the block in a fixed order; thread 0 has it. parts: [kWarps], free to use.
ICD_DEVICE double sum_block(double value, double* parts) {
  value = sum_lanes(value);
  __syncthreads();
  if (lane() == 0) parts[warp()] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += parts[w];
  return total;
}

// Neighbouring elements that one thread moves at a time, 16 bytes in one instruction; kCount is a power of 2.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T values[kCount];
};

// The dtype is the same for a whole launch, so the branch never splits a warp.
template <typename T>
ICD_DEVICE T load(const void* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::float64: return static_cast<T>(static_cast<const double*>(data)[index]);
    case Dtype::float32: return static_cast<T>(static_cast<const float*>(data)[index]);
    case Dtype::bfloat16: return static_cast<T>(static_cast<float>(static_cast<const c10::BFloat16*>(data)[index]));
    default: return static_cast<T>(static_cast<float>(static_cast<const c10::Half*>(data)[index]));
  }
}

template <typename T>
ICD_DEVICE void store(void* data, Dtype dtype, int64_t index, T value) {
  switch (dtype) {
    case Dtype::float64: static_cast<double*>(data)[index] = static_cast<double>(value); break;
    case Dtype::float32: static_cast<float*>(data)[index] = static_cast<float>(value); break;
    case Dtype::bfloat16: static_cast<c10::BFloat16*>(data)[index] = static_cast<float>(value); break;
    default: static_cast<c10::Half*>(data)[index] = static_cast<float>(value); break;
  }
}

// Calls visit(I()) with the C++ type of `dtype`, of those that math in T meets.
template <typename T, typename Visit>
ICD_DEVICE void visit_dtype(Dtype dtype, Visit visit) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (dtype == Dtype::float64) return visit(double());
  }
  if (dtype == Dtype::float32) return visit(float());
  if (dtype == Dtype::bfloat16) return visit(c10::BFloat16());
  return visit(c10::Half());
}

template <typename T>
ICD_DEVICE T upstream_of(const Upstream& upstream, int64_t image) {
  return upstream.data == nullptr ? T(1) : load<T>(upstream.data, upstream.dtype, image * upstream.stride);
}

// Places on a map or a grid: the launcher sees to it that they fit in 32 bits (kMostSide, kMostScale), because a 64-bit
// division is a call of a hundred instructions.
using Place = uint32_t;

// An item of work: a warp's or a thread's number in its launch (kMostBlocks).
using Item = uint32_t;

struct Cell {
  int scale_index;
  WindowOf<Place> rows, columns;
};

// Where region n lies on a map.
ICD_DEVICE Cell cell_of(const Scales& scales, Place n, Place height, Place width) {
  int s = 0;
  Place scale = scales.sizes[0];
  while (n >= scale * scale) {
    n -= scale * scale;
    scale = scales.sizes[++s];
  }
  const Place row = n / scale;
  return {s, window(row, scale, height), window(n - row * scale, scale, width)};
}

ICD_DEVICE Place area(const Cell& cell) { return length(cell.rows) * length(cell.columns); }

// Calls visit(n, share) for every region n that covers pixel (h, w), share = 1/|region|, in the regions' order.
template <typename T, typename Visit>
ICD_DEVICE void for_each_covering(
    const Scales& scales, Place height, Place width, Place h, Place w, Visit visit) {
  Place first = 0;
  for (int s = 0; s < scales.count; ++s) {
    const Place scale = scales.sizes[s];
    const WindowOf<Place> rows = covering(h, scale, height), columns = covering(w, scale, width);
    for (Place i = rows.start; i < rows.stop; ++i) {
      const Place tall = length(window(i, scale, height));
      for (Place j = columns.start; j < columns.stop; ++j) {
        visit(first + i * scale + j, T(1) / static_cast<T>(tall * length(window(j, scale, width))));
      }
    }
    first += scale * scale;
  }
}

}  // namespace icd::cuda
