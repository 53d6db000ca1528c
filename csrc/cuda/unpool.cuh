// The gradient by the features: every pixel collects grad(cell)/|cell| from the cells that cover it. Each element is
// written once, by one thread, so nothing is added in memory. The same launch adds the parts of the weight's gradient.
//   channels, channel_vectors: a warp takes neighbouring channels of one pixel;
//   planes: a thread takes one pixel of neighbouring planes, its warp neighbouring pixels.
#pragma once

#include "block.cuh"

namespace icd::cuda {

// A pixel's place in elements.
ICD_DEVICE int64_t pixel_of(const FeatureMap& map, int64_t image, int64_t channel, int64_t h, int64_t w) {
  return image * map.batch_stride + channel * map.channel_stride + h * map.height_stride + w * map.width_stride;
}

// One warp's pixel, and the first of its lane's channels.
struct PixelItem {
  int64_t image, channel;
  Place h, w;
};

template <typename T>
ICD_DEVICE PixelItem pixel_item(const UnpoolArguments<T>& arguments, int64_t block, int count) {
  const FeatureMap& map = arguments.map;
  const Item item = static_cast<Item>(block) * kWarps + warp(), blocks = static_cast<Item>(arguments.channel_blocks);
  const Item place = item / blocks, part = item - place * blocks;
  const Item width = static_cast<Item>(map.width), pixels = static_cast<Item>(map.height) * width;
  const Item image = place / pixels, pixel = place - image * pixels, h = pixel / width;
  return {image, static_cast<int64_t>(part * kWarp + lane()) * count, h, pixel - h * width};
}

template <typename O, typename T>
ICD_DEVICE void unpool_channel_vectors(const UnpoolArguments<T>& arguments, int64_t block) {
  constexpr int kCount = kVectorBytes / sizeof(O);
  const FeatureMap& map = arguments.map;
  const PixelItem item = pixel_item(arguments, block, kCount);
  if (item.image >= map.batch || item.channel >= map.channels) return;
  const T* grad = arguments.grad_pooled + item.image * arguments.scales.cells * map.channels + item.channel;
  T sums[kCount] = {};
  for_each_covering<T>(arguments.scales, map.height, map.width, item.h, item.w, [&](Place n, T share) {
    const auto values = *reinterpret_cast<const Pack<T, kCount>*>(grad + n * map.channels);
#pragma unroll
    for (int v = 0; v < kCount; ++v) sums[v] += share * values.values[v];
  });
  Pack<O, kCount> out;
#pragma unroll
  for (int v = 0; v < kCount; ++v) out.values[v] = static_cast<O>(sums[v]);
  O* to = static_cast<O*>(map.data) + pixel_of(map, item.image, item.channel, item.h, item.w);
  *reinterpret_cast<Pack<O, kCount>*>(to) = out;
}

template <typename O, typename T>
ICD_DEVICE void unpool_planes(const UnpoolArguments<T>& arguments, int64_t block) {
  constexpr int kCount = static_cast<int>(kUnpoolChannels);
  const FeatureMap& map = arguments.map;
  const Item thread = static_cast<Item>(block) * kThreads + threadIdx.x;
  const Item width = static_cast<Item>(map.width), pixels = static_cast<Item>(map.height) * width;
  const Item planes = thread / pixels, pixel = thread - planes * pixels;
  const Item blocks = static_cast<Item>(arguments.channel_blocks), image = planes / blocks;
  const int64_t channel = static_cast<int64_t>(planes - image * blocks) * kCount;
  if (image >= map.batch) return;
  const Place h = pixel / width, w = pixel - h * width;
  const T* grad = arguments.grad_pooled + image * arguments.scales.cells * map.channels + channel;
  const int left = static_cast<int>(map.channels - channel < kCount ? map.channels - channel : kCount);
  T sums[kCount] = {};
  for_each_covering<T>(arguments.scales, map.height, map.width, h, w, [&](Place n, T share) {
    const T* values = grad + n * map.channels;
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      if (c < left) sums[c] += share * values[c];
    }
  });
  O* out = static_cast<O*>(map.data) + pixel_of(map, image, channel, h, w);
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    if (c < left) out[c * map.channel_stride] = static_cast<O>(sums[c]);
  }
}

template <typename O, typename T>
ICD_DEVICE void unpool_channels(const UnpoolArguments<T>& arguments, int64_t block) {
  const FeatureMap& map = arguments.map;
  const PixelItem item = pixel_item(arguments, block, 1);
  if (item.image >= map.batch || item.channel >= map.channels) return;
  const T* grad = arguments.grad_pooled + item.image * arguments.scales.cells * map.channels + item.channel;
  T sum = 0;
  for_each_covering<T>(arguments.scales, map.height, map.width, item.h, item.w, [&](Place n, T share) {
    sum += share * grad[n * map.channels];
  });
  static_cast<O*>(map.data)[pixel_of(map, item.image, item.channel, item.h, item.w)] = static_cast<O>(sum);
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
    if (arguments.access == Access::channels) unpool_channels<O>(arguments, block);
    else if (arguments.access == Access::channel_vectors) unpool_channel_vectors<O>(arguments, block);
    else unpool_planes<O>(arguments, block);
  });
}

}  // namespace icd::cuda
