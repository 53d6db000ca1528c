// Means of the cells of a feature map, both networks in one launch.
//   channels, channel_vectors: a warp takes neighbouring channels of one cell straight from the map;
//   planes: a block stages whole planes in shared memory, reading the map once, and sums cells from there;
//   large_planes: a warp takes one cell of one plane, where a plane is larger than the shared memory.
// Each row of a cell is summed by itself: equal pixels round the same way each time, and one long sum of them would drift.
#pragma once

#include "block.cuh"

namespace icd::cuda {

template <typename T>
struct PoolShared {
  T tile[pool_tile<T>()];
};

// Where an image's plane begins, in elements.
ICD_DEVICE int64_t plane_of(const FeatureMap& map, int64_t image, int64_t channel) {
  return image * map.batch_stride + channel * map.channel_stride;
}

// One warp's cell of an image, and the first of its lane's channels.
struct ChannelItem {
  int64_t image, channel;
  Place n;
  Cell cell;
};

template <typename T>
ICD_DEVICE ChannelItem channel_item(const PooledMap<T>& net, int64_t block, int count) {
  const Item item = static_cast<Item>(block) * kWarps + warp(), cells = net.scales.cells, n = item % cells;
  const Item blocks = static_cast<Item>(net.channel_blocks), part = item / cells;
  return {
      part / blocks, static_cast<int64_t>(part % blocks * kWarp + lane()) * count, n,
      cell_of(net.scales, n, net.map.height, net.map.width)};
}

template <typename I, typename T>
ICD_DEVICE void pool_channel_vectors(const PooledMap<T>& net, int64_t block) {
  constexpr int kCount = kVectorBytes / sizeof(I);
  const FeatureMap& map = net.map;
  const ChannelItem item = channel_item(net, block, kCount);
  if (item.image >= map.batch || item.channel >= map.channels) return;
  const I* pixels = static_cast<const I*>(map.data) + plane_of(map, item.image, item.channel);
  T sums[kCount] = {};
  for (Place h = item.cell.rows.start; h < item.cell.rows.stop; ++h) {
    T row[kCount] = {};
#pragma unroll 4
    for (Place w = item.cell.columns.start; w < item.cell.columns.stop; ++w) {
      const I* pixel = pixels + h * map.height_stride + w * map.width_stride;
      const Pack<I, kCount> values = *reinterpret_cast<const Pack<I, kCount>*>(pixel);
#pragma unroll
      for (int v = 0; v < kCount; ++v) row[v] += static_cast<T>(values.values[v]);
    }
#pragma unroll
    for (int v = 0; v < kCount; ++v) sums[v] += row[v];
  }
  const T pixels_of_cell = static_cast<T>(area(item.cell));
  T* out = net.pooled + (item.image * net.scales.cells + item.n) * map.channels + item.channel;
#pragma unroll
  for (int v = 0; v < kCount; ++v) out[v] = sums[v] / pixels_of_cell;
}

template <typename I, typename T>
ICD_DEVICE void pool_channels(const PooledMap<T>& net, int64_t block) {
  const FeatureMap& map = net.map;
  const ChannelItem item = channel_item(net, block, 1);
  if (item.image >= map.batch || item.channel >= map.channels) return;
  const I* pixels = static_cast<const I*>(map.data) + plane_of(map, item.image, item.channel);
  T sum = 0;
  for (Place h = item.cell.rows.start; h < item.cell.rows.stop; ++h) {
    T row = 0;
#pragma unroll 4
    for (Place w = item.cell.columns.start; w < item.cell.columns.stop; ++w) {
      row += static_cast<T>(pixels[h * map.height_stride + w * map.width_stride]);
    }
    sum += row;
  }
  T* out = net.pooled + (item.image * net.scales.cells + item.n) * map.channels + item.channel;
  *out = sum / static_cast<T>(area(item.cell));
}

// tile[c, p] of `count` planes. An odd row length keeps neighbouring planes in different banks.
template <typename I, typename T>
ICD_DEVICE void stage_planes(const FeatureMap& map, const I* planes, int count, int row, T* tile) {
  constexpr int kCount = kVectorBytes / sizeof(I);
  const int pixels = static_cast<int>(map.height * map.width), width = static_cast<int>(map.width);
  const int elements = count * pixels;
  const bool one_run = map.width_stride == 1 && map.height_stride == map.width && map.channel_stride == pixels;
  int done = 0;
  if (one_run && reinterpret_cast<uintptr_t>(planes) % kVectorBytes == 0) {
    done = elements / kCount * kCount;
#pragma unroll 4
    for (int e = static_cast<int>(threadIdx.x) * kCount; e < done; e += kThreads * kCount) {
      const Pack<I, kCount> values = *reinterpret_cast<const Pack<I, kCount>*>(planes + e);
      int c = e / pixels, p = e % pixels;
#pragma unroll
      for (int v = 0; v < kCount; ++v) {
        tile[c * row + p] = static_cast<T>(values.values[v]);
        if (++p == pixels) p = 0, ++c;
      }
    }
  }
#pragma unroll 4
  for (int e = done + static_cast<int>(threadIdx.x); e < elements; e += kThreads) {
    const int c = e / pixels, p = e % pixels;
    const int64_t offset = c * map.channel_stride + p / width * map.height_stride + p % width * map.width_stride;
    tile[c * row + p] = static_cast<T>(planes[offset]);
  }
}

// Lanes that share one cell's rows, so that few large cells keep a block busy: a power of 2.
ICD_DEVICE int lanes_per_cell(int outputs) {
  int lanes = 1;
  while (lanes < kWarp && outputs * lanes * 2 <= kThreads) lanes *= 2;
  return lanes;
}

template <typename I, typename T>
ICD_DEVICE void pool_planes(const PooledMap<T>& net, int64_t block, T* tile) {
  const FeatureMap& map = net.map;
  const Item blocks = static_cast<Item>(net.channel_blocks), image = static_cast<Item>(block) / blocks;
  const int64_t per_block = net.planes, channel = (static_cast<Item>(block) - image * blocks) * per_block;
  if (channel >= map.channels) return;
  const int64_t left = map.channels - channel;
  const int count = static_cast<int>(left < per_block ? left : per_block);
  const int width = static_cast<int>(map.width), row = static_cast<int>(map.height * map.width) | 1;
  stage_planes(map, static_cast<const I*>(map.data) + plane_of(map, image, channel), count, row, tile);
  __syncthreads();
  const int cells = net.scales.cells, outputs = count * cells, lanes = lanes_per_cell(outputs);
  const int part = static_cast<int>(threadIdx.x) % lanes, step = kThreads / lanes;
  for (int first = 0; first < outputs; first += step) {  // every lane takes part in the sum over lanes
    const int output = first + static_cast<int>(threadIdx.x) / lanes;
    const int c = output % count, n = output / count;
    T sum = 0, pixels = 1;
    if (output < outputs) {
      const Cell cell = cell_of(net.scales, n, map.height, map.width);
      const int start = static_cast<int>(cell.columns.start), stop = static_cast<int>(cell.columns.stop);
      for (int h = static_cast<int>(cell.rows.start) + part; h < static_cast<int>(cell.rows.stop); h += lanes) {
        T of_row = 0;
        for (int w = start; w < stop; ++w) of_row += tile[c * row + h * width + w];
        sum += of_row;
      }
      pixels = static_cast<T>(area(cell));
    }
    sum = sum_lanes(sum, lanes);
    if (output >= outputs || part != 0) continue;
    net.pooled[(static_cast<int64_t>(image) * cells + n) * map.channels + channel + c] = sum / pixels;
  }
}

template <typename I, typename T>
ICD_DEVICE void pool_large_planes(const PooledMap<T>& net, int64_t block) {
  const FeatureMap& map = net.map;
  const Item item = static_cast<Item>(block) * kWarps + warp();
  const Item cells = net.scales.cells, n = item % cells, plane = item / cells;
  const Item channel = plane % static_cast<Item>(map.channels), image = plane / static_cast<Item>(map.channels);
  if (image >= map.batch) return;
  const Cell cell = cell_of(net.scales, n, map.height, map.width);
  const I* pixels = static_cast<const I*>(map.data) + plane_of(map, image, channel);
  T sum = 0;
  for (Place h = cell.rows.start; h < cell.rows.stop; ++h) {
    T row = 0;
    for (Place w = cell.columns.start + lane(); w < cell.columns.stop; w += kWarp) {
      row += static_cast<T>(pixels[h * map.height_stride + w * map.width_stride]);
    }
    sum += row;
  }
  sum = sum_lanes(sum);
  T* out = net.pooled + (static_cast<int64_t>(image) * cells + n) * map.channels + channel;
  if (lane() == 0) *out = sum / static_cast<T>(area(cell));
}

template <typename T>
ICD_DEVICE void pool_network(const PooledMap<T>& net, int64_t block, PoolShared<T>& shared) {
  visit_dtype<T>(net.map.dtype, [&](auto i) {
    using I = decltype(i);
    switch (net.access) {
      case Access::channels: return pool_channels<I>(net, block);
      case Access::channel_vectors: return pool_channel_vectors<I>(net, block);
      case Access::planes: return pool_planes<I>(net, block, shared.tile);
      case Access::large_planes: return pool_large_planes<I>(net, block);
    }
  });
}

template <typename T>
ICD_DEVICE void pool_block(const PoolArguments<T>& arguments, PoolShared<T>& shared) {
  const int64_t block = blockIdx.x;
  if (block == 0 && arguments.counters != nullptr && threadIdx.x < kCounters) arguments.counters[threadIdx.x] = 0;
  const int64_t first = arguments.networks[0].blocks;
  const bool second = block >= first;
  pool_network(arguments.networks[second], second ? block - first : block, shared);
}

}  // namespace icd::cuda
