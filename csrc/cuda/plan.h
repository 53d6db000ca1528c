// How the work of each launch is divided into blocks, tiles, splits and tasks: from sizes and the number of
// multiprocessors alone.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "describe.h"

namespace icd::cuda {

inline int64_t ceil_divide(int64_t count, int64_t step) { return (count + step - 1) / step; }

inline void check_blocks(int64_t blocks) {
  check(blocks <= kMostBlocks, "backend 'cuda' cannot number ", blocks, " blocks of work: too large a batch");
}

// Planes are staged in shared memory where they fit.
template <typename T>
void plan_pool(PooledMap<T>& net) {
  const FeatureMap& map = net.map;
  const int64_t row = map.height * map.width + 1, cells = net.scales.cells;
  net.access = access_of(map);
  if (net.access != Access::planes) {
    net.channel_blocks = ceil_divide(map.channels, warp_channels(map, net.access));
    net.blocks = ceil_divide(map.batch * net.channel_blocks * cells, kWarps);
  } else if (row <= pool_tile<T>()) {
    net.channel_blocks = ceil_divide(map.channels, std::min(kPoolChannels, pool_tile<T>() / row));
    net.planes = ceil_divide(map.channels, net.channel_blocks);
    net.blocks = map.batch * net.channel_blocks;
  } else {
    net.access = Access::large_planes;
    net.blocks = ceil_divide(map.batch * map.channels * cells, kWarps);
  }
  check_blocks(net.blocks);
}

// Blocks that keep every multiprocessor busy for a while.
constexpr int64_t kWaves = 2;
constexpr int64_t kMostSplits = 16;
constexpr int64_t kLeastDepth = 128;  // of a split
constexpr int64_t kStep = 16;         // a split is whole steps long

template <typename T>
int64_t tiles_of(const Product<T>& product, int64_t tile) {
  return ceil_divide(product.rows, tile) * ceil_divide(product.columns, tile);
}

// Large tiles where there are enough of them, for they read less; the depth in parts where there are too few tiles.
template <typename T>
void plan_products(ProductArguments<T>& arguments, std::initializer_list<bool> may_split, int64_t processors) {
  int64_t large = 0, small = 0;
  for (int i = 0; i < arguments.count; ++i) {
    large += tiles_of(arguments.products[i], 128);
    small += tiles_of(arguments.products[i], 64);
  }
  arguments.tile = std::is_same_v<T, float> && large >= kWaves * processors ? 128 : 64;
  const int64_t wanted = ceil_divide(kWaves * processors, std::max<int64_t>(1, small));
  for (int i = 0; i < arguments.count; ++i) {
    Product<T>& product = arguments.products[i];
    product.row_tiles = ceil_divide(product.rows, arguments.tile);
    product.column_tiles = ceil_divide(product.columns, arguments.tile);
    const int64_t most = std::clamp<int64_t>(product.depth / kLeastDepth, 1, kMostSplits);
    const int64_t splits = may_split.begin()[i] ? std::min(wanted, most) : 1;
    product.split_depth = std::max<int64_t>(1, ceil_divide(ceil_divide(product.depth, splits), kStep)) * kStep;
    product.splits = std::max<int64_t>(1, ceil_divide(product.depth, product.split_depth));
  }
}

// How many tasks each phase has.
template <typename T>
void plan_gram(GramArguments<T>& arguments, bool with_gradient, int64_t processors) {
  const Scales& scales = arguments.scales;
  const int64_t batch = arguments.batch, rows = batch * scales.cells;
  const int32_t finest = *std::max_element(scales.sizes, scales.sizes + scales.count);
  const int64_t points = arguments.gram == Gram::sample ? batch : static_cast<int64_t>(finest) * finest;
  arguments.tile = points > 16 ? kLargePointTile<T> : 16;
  int64_t* tasks = arguments.tasks;
  tasks[0] = ceil_divide(2 * rows, kWarps);
  if (arguments.gram == Gram::class_) {
    tasks[1] = rows;
  } else if (arguments.gram == Gram::sample) {
    tasks[1] = scales.cells * ceil_divide(batch, arguments.tile);
  } else {
    for (int s = 0; s < scales.count; ++s) {
      tasks[1] += batch * ceil_divide(static_cast<int64_t>(scales.sizes[s]) * scales.sizes[s], arguments.tile);
    }
  }
  tasks[2] = arguments.gram != Gram::class_ && with_gradient ? tasks[1] : 0;
  tasks[3] = (arguments.folded == nullptr ? 0 : ceil_divide(batch * arguments.finest * arguments.finest, kWarps)) +
      (arguments.loss == nullptr ? 0 : 1);
  const int64_t total = tasks[0] + tasks[1] + tasks[2] + tasks[3];
  constexpr int64_t kBlocksPerProcessor = 8;  // as many as fit; further ones would only find the tickets gone
  check(total < 0x7fffffff, "backend 'cuda' cannot number ", total, " tasks: too large a batch");
  arguments.blocks = std::min(total, kBlocksPerProcessor * processors);
}

template <typename T>
void plan_unpool(UnpoolArguments<T>& arguments) {
  const FeatureMap& map = arguments.map;
  const int64_t pixels = map.height * map.width;
  if (arguments.access == Access::planes) {
    arguments.channel_blocks = ceil_divide(map.channels, kUnpoolChannels);
    arguments.blocks = ceil_divide(map.batch * arguments.channel_blocks * pixels, kThreads);
  } else {
    arguments.channel_blocks = ceil_divide(map.channels, warp_channels(map, arguments.access));
    arguments.blocks = ceil_divide(map.batch * arguments.channel_blocks * pixels, kWarps);
  }
  check_blocks(arguments.blocks);
}

}  // namespace icd::cuda
