// The gradient by the features: every pixel collects grad(cell)/|cell| from the cells that cover it. Each element is
// written once, by one thread, so nothing is added in memory. The same launch adds the parts of the weight's gradient.
//   channels, channel_vectors: a warp takes neighbouring channels of one pixel;
//   planes: a thread takes one pixel of neighbouring planes, its warp neighbouring pixels.
#pragma once

#include "block.cuh"

namespace icd::cuda {

template <typename O>
ICD_DEVICE O* pixel_of(const FeatureMap& map, int64_t image, int64_t channel, int64_t h, int64_t w) {
  return static_cast<O*>(map.data) + image * map.batch_stride + channel * map.channel_stride + h * map.height_stride +
      w * map.width_stride;
}

template <typename O, int kCount, typename T>
ICD_DEVICE void unpool_channels(const UnpoolArguments<T>& arguments, int64_t block) {
  const FeatureMap& map = arguments.map;
  const int64_t item = block * kWarps + warp();
  const int64_t pixels = map.height * map.width, pixel = item / arguments.channel_blocks % pixels;
  const int64_t image = item / arguments.channel_blocks / pixels;
  const int64_t channel = (item % arguments.channel_blocks * kWarp + lane()) * kCount;
  if (image >= map.batch || channel >= map.channels) return;
  const int64_t h = pixel / map.width, w = pixel % map.width;
  const T* grad = arguments.grad_pooled + image * arguments.scales.cells * map.channels + channel;
  T sums[kCount] = {};
  for_each_covering<T>(arguments.scales, map.height, map.width, h, w, [&](int64_t n, T share) {
    const auto values = *reinterpret_cast<const Pack<T, kCount>*>(grad + n * map.channels);
#pragma unroll
    for (int v = 0; v < kCount; ++v) sums[v] += share * values.values[v];
  });
  Pack<O, kCount> out;
#pragma unroll
  for (int v = 0; v < kCount; ++v) out.values[v] = static_cast<O>(sums[v]);
  *reinterpret_cast<Pack<O, kCount>*>(pixel_of<O>(map, image, channel, h, w)) = out;
}

template <typename O, typename T>
ICD_DEVICE void unpool_planes(const UnpoolArguments<T>& arguments, int64_t block) {
  constexpr int kCount = static_cast<int>(kUnpoolChannels);
  const FeatureMap& map = arguments.map;
  const int64_t thread = block * kThreads + threadIdx.x;
  const int64_t pixels = map.height * map.width, pixel = thread % pixels;
  const int64_t channel = thread / pixels % arguments.channel_blocks * kCount;
  const int64_t image = thread / pixels / arguments.channel_blocks;
  if (image >= map.batch) return;
  const int64_t h = pixel / map.width, w = pixel % map.width;
  const T* grad = arguments.grad_pooled + image * arguments.scales.cells * map.channels + channel;
  T sums[kCount] = {};
  for_each_covering<T>(arguments.scales, map.height, map.width, h, w, [&](int64_t n, T share) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      if (channel + c < map.channels) sums[c] += share * grad[n * map.channels + c];
    }
  });
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    if (channel + c < map.channels) *pixel_of<O>(map, image, channel + c, h, w) = static_cast<O>(sums[c]);
  }
}

// out[e] = Σ parts, in the parts' order
template <typename T>
ICD_DEVICE void add_parts(const UnpoolArguments<T>& arguments, int64_t block) {
  const int64_t step = arguments.partial_blocks * kThreads;
  for (int64_t e = block * kThreads + threadIdx.x; e < arguments.elements; e += step) {
    T sum = arguments.partial[e];
    for (int64_t part = 1; part < arguments.splits; ++part) sum += arguments.partial[part * arguments.elements + e];
    store(arguments.out, arguments.dtype, e, sum);
  }
}

template <typename T>
ICD_DEVICE void unpool_block(const UnpoolArguments<T>& arguments) {
  const int64_t block = blockIdx.x;
  if (block >= arguments.blocks) return add_parts(arguments, block - arguments.blocks);
  visit_dtype<T>(arguments.map.dtype, [&](auto o) {
    using O = decltype(o);
    // Sixteen bytes of the map, and of T as many loads of sixteen bytes as that takes.
    if (arguments.access == Access::channel_vectors) {
      unpool_channels<O, kVectorBytes / sizeof(O)>(arguments, block);
    } else if (arguments.access == Access::channels) {
      unpool_channels<O, 1>(arguments, block);
    } else {
      unpool_planes<O>(arguments, block);
    }
  });
}

}  // namespace icd::cuda
