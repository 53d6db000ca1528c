// Pooling a feature map into cells, and the transpose: pixels collecting the gradients of the cells that cover them.
// Included once for each instruction set, inside its namespace (kernels_table.h).
//
// A block of channels is the unit of work, because cells are summed with the channels across the vector:
//   channels innermost (channels-last, token grids): straight from the map;
//   wide rows: rows are summed downwards first, with the pixels of a row across the vector;
//   anything else: the block is transposed into a tile with its channels innermost.

constexpr int64_t kPlaneBlock = 16;    // one cache line of float for each pixel of the tile
constexpr int64_t kChannelBlock = 64;  // long enough runs for the prefetcher, short enough for registers
constexpr int64_t kWideRow = 8, kWiderRow = 16;  // pixels that are summed side by side

template <typename I>
inline bool channels_innermost(const FeatureMap<I>& map) {
  return map.channel_stride == 1;
}

template <typename I>
inline int64_t channel_block(const FeatureMap<I>& map) {
  return channels_innermost(map) ? kChannelBlock : kPlaneBlock;
}

template <typename I>
int64_t map_items(const FeatureMap<I>& map) {
  const int64_t block = channel_block(map);
  return map.batch * ((map.channels + block - 1) / block);
}

// How many windows all scales have along one axis.
inline int64_t window_count(const Scales& scales) {
  int64_t count = 0;
  for (int64_t s = 0; s < scales.count; ++s) count += scales.sizes[s];
  return count;
}

// In elements of T, float or double: a tile, and the windows of both axes.
template <typename I>
int64_t map_scratch(const FeatureMap<I>& map, const Scales& scales) {
  const int64_t tile = (map.height * map.width + map.width + scales.cells) * channel_block(map);
  return tile + 2 * window_count(scales) * static_cast<int64_t>(sizeof(Window) / sizeof(float)) + 16;
}

// One work item: `count` channels from `channel` on, of one image.
struct Block {
  int64_t image, channel, count;
};

template <typename I>
inline Block block_of(const FeatureMap<I>& map, int64_t item) {
  const int64_t block = channel_block(map);
  const int64_t per_image = (map.channels + block - 1) / block;
  const int64_t channel = item % per_image * block;
  const int64_t left = map.channels - channel;
  return {item / per_image, channel, left < block ? left : block};
}

template <typename I>
inline I* block_data(const FeatureMap<I>& map, const Block& block) {
  return map.data + block.image * map.batch_stride + block.channel * map.channel_stride;
}

// Calls visit(cell, rows, columns) for every cell of every scale.
template <typename Visit>
inline void for_each_cell(const Scales& scales, int64_t height, int64_t width, Visit visit) {
  int64_t cell = 0;
  for (int64_t s = 0; s < scales.count; ++s) {
    const int64_t scale = scales.sizes[s];
    for (int64_t i = 0; i < scale; ++i) {
      for (int64_t j = 0; j < scale; ++j) {
        visit(cell++, window(i, scale, height), window(j, scale, width));
      }
    }
  }
}

constexpr int64_t kPartialSum = 16;  // pixels, about: equal ones round the same way each time, and a long sum of them drifts

// pooled[cell, 0..count) for a tile with its channels innermost: partial sums of a row or a few, then the sum of these.
template <int64_t kBlock, typename I, typename T>
inline void pool_tile(
    const I* tile, int64_t height_stride, int64_t width_stride, int64_t height, int64_t width, const Scales& scales,
    int64_t count, T* pooled, int64_t cell_stride) {
  for_each_cell(scales, height, width, [&](int64_t cell, Window rows, Window columns) {
    T sum[kBlock] = {};
    const int64_t run = (kPartialSum + length(columns) - 1) / length(columns);  // rows of a partial sum
    for (int64_t first = rows.start; first < rows.stop; first += run) {
      T partial[kBlock] = {};
      for (int64_t h = first; h < (first + run < rows.stop ? first + run : rows.stop); ++h) {
        for (int64_t w = columns.start; w < columns.stop; ++w) {
          const I* pixel = tile + h * height_stride + w * width_stride;
#pragma omp simd
          for (int64_t c = 0; c < count; ++c) partial[c] += static_cast<T>(pixel[c]);
        }
      }
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) sum[c] += partial[c];
    }
    const T pixels = static_cast<T>(length(rows) * length(columns));
    T* out = pooled + cell * cell_stride;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) out[c] = sum[c] / pixels;
  });
}

// Transposes a block of planes into tile[pixel, channel]; channels past `count` become 0. Plane by plane, so that the
// slow memory is read in order and only the tile, which is in the cache, is written in strides.
template <typename I, typename T>
inline void pack_tile(const FeatureMap<I>& map, const I* planes, int64_t count, T* tile) {
  const int64_t pixels = map.height * map.width;
  const bool dense = map.width_stride == 1 && map.height_stride == map.width;
  for (int64_t c = 0; c < count; ++c) {
    const I* plane = planes + c * map.channel_stride;
    T* out = tile + c;
    if (dense) {
      for (int64_t k = 0; k < pixels; ++k) out[k * kPlaneBlock] = static_cast<T>(plane[k]);
      continue;
    }
    for (int64_t h = 0; h < map.height; ++h) {
      for (int64_t w = 0; w < map.width; ++w) {
        out[(h * map.width + w) * kPlaneBlock] =
            static_cast<T>(plane[h * map.height_stride + w * map.width_stride]);
      }
    }
  }
  for (int64_t c = count; c < kPlaneBlock; ++c) {
    for (int64_t k = 0; k < pixels; ++k) tile[k * kPlaneBlock + c] = T(0);
  }
}

// column_sums[w] = Σ_h rows[h, w], kRun pixels at a time in registers. The last run ends with the row and may overlap the
// one before: it writes the same sums again. W >= kRun
template <int64_t kRun, typename I, typename T>
inline void sum_downwards(const I* rows, int64_t stride, int64_t height, int64_t width, T* column_sums) {
  for (int64_t start = 0; start < width; start += kRun) {
    const int64_t first = start + kRun > width ? width - kRun : start;
    T sum[kRun] = {};
    for (int64_t h = 0; h < height; ++h) {
      const I* row = rows + h * stride + first;
#pragma omp simd
      for (int64_t w = 0; w < kRun; ++w) sum[w] += static_cast<T>(row[w]);
    }
#pragma omp simd
    for (int64_t w = 0; w < kRun; ++w) column_sums[first + w] = sum[w];
  }
}

// Means of one plane's cells, rows of unit stride summed downwards first. cells[cell · kPlaneBlock]; column_sums: [W].
template <int64_t kRun, typename I, typename T>
inline void pool_wide_plane(
    const FeatureMap<I>& map, const I* plane, const Scales& scales, const Window* row_windows,
    const Window* column_windows, T* cells, T* column_sums) {
  int64_t cell = 0;
  for (int64_t s = 0; s < scales.count; ++s) {
    const int64_t scale = scales.sizes[s];
    for (int64_t i = 0; i < scale; ++i) {
      const Window rows = row_windows[i];
      const I* first = plane + rows.start * map.height_stride;
      sum_downwards<kRun>(first, map.height_stride, length(rows), map.width, column_sums);
      for (int64_t j = 0; j < scale; ++j, ++cell) {
        const Window columns = column_windows[j];
        T sum = 0;
        for (int64_t w = columns.start; w < columns.stop; ++w) sum += column_sums[w];
        cells[cell * kPlaneBlock] = sum / static_cast<T>(length(rows) * length(columns));
      }
    }
    row_windows += scale;
    column_windows += scale;
  }
}

template <typename I, typename T>
inline void pool_wide_planes(
    const FeatureMap<I>& map, const I* planes, const Scales& scales, int64_t count, const Window* row_windows,
    const Window* column_windows, T* pooled, T* scratch) {
  T* cells = scratch;  // [cells, kPlaneBlock]
  T* column_sums = scratch + scales.cells * kPlaneBlock;
  for (int64_t c = 0; c < count; ++c) {
    const I* plane = planes + c * map.channel_stride;
    if (map.width >= kWiderRow) {
      pool_wide_plane<kWiderRow>(map, plane, scales, row_windows, column_windows, cells + c, column_sums);
    } else {
      pool_wide_plane<kWideRow>(map, plane, scales, row_windows, column_windows, cells + c, column_sums);
    }
  }
  for (int64_t cell = 0; cell < scales.cells; ++cell) {
    for (int64_t c = 0; c < count; ++c) pooled[cell * map.channels + c] = cells[cell * kPlaneBlock + c];
  }
}

template <typename I, typename T>
void pool(const FeatureMap<I>& map, const Scales& scales, T* pooled, T* scratch, int64_t begin, int64_t end) {
  // The windows of both axes, divided once and not for every plane.
  Window* row_windows = reinterpret_cast<Window*>(scratch);
  Window* column_windows = row_windows + window_count(scales);
  for (int64_t s = 0, place = 0; s < scales.count; ++s) {
    for (int64_t i = 0; i < scales.sizes[s]; ++i, ++place) {
      row_windows[place] = window(i, scales.sizes[s], map.height);
      column_windows[place] = window(i, scales.sizes[s], map.width);
    }
  }
  scratch = reinterpret_cast<T*>(column_windows + window_count(scales));
  for (int64_t item = begin; item < end; ++item) {
    const Block block = block_of(map, item);
    const I* data = block_data(map, block);
    T* out = pooled + block.image * scales.cells * map.channels + block.channel;
    if (channels_innermost(map)) {
      // Two calls, so that the full block's loops have a constant length.
      if (block.count == kChannelBlock) {
        pool_tile<kChannelBlock>(
            data, map.height_stride, map.width_stride, map.height, map.width, scales, kChannelBlock, out, map.channels);
      } else {
        pool_tile<kChannelBlock>(
            data, map.height_stride, map.width_stride, map.height, map.width, scales, block.count, out, map.channels);
      }
    } else if (map.width_stride == 1 && map.width >= kWideRow) {
      pool_wide_planes(map, data, scales, block.count, row_windows, column_windows, out, scratch);
    } else {
      pack_tile(map, data, block.count, scratch);
      T* cells = scratch + map.height * map.width * kPlaneBlock;  // [cells, kPlaneBlock]
      pool_tile<kPlaneBlock>(
          scratch, map.width * kPlaneBlock, kPlaneBlock, map.height, map.width, scales, kPlaneBlock, cells, kPlaneBlock);
      for (int64_t cell = 0; cell < scales.cells; ++cell) {
        for (int64_t c = 0; c < block.count; ++c) out[cell * map.channels + c] = cells[cell * kPlaneBlock + c];
      }
    }
  }
}

// tile[pixel, 0..kBlock) = the shares of every cell that covers the pixel; channels past `count` are left alone.
template <int64_t kBlock, typename T>
inline void unpool_tile(
    const T* grad, int64_t cell_stride, int64_t height, int64_t width, const Scales& scales, int64_t count, T* tile) {
  for (int64_t k = 0; k < height * width * kBlock; ++k) tile[k] = T(0);
  for_each_cell(scales, height, width, [&](int64_t cell, Window rows, Window columns) {
    const T share = T(1) / static_cast<T>(length(rows) * length(columns));
    T value[kBlock];
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) value[c] = grad[cell * cell_stride + c] * share;
    for (int64_t h = rows.start; h < rows.stop; ++h) {
      for (int64_t w = columns.start; w < columns.stop; ++w) {
        T* pixel = tile + (h * width + w) * kBlock;
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) pixel[c] += value[c];
      }
    }
  });
}

template <int64_t kBlock, typename O, typename T>
inline void unpack_tile(const FeatureMap<O>& map, const T* tile, int64_t count, O* data) {
  if (kBlock == kChannelBlock) {
    for (int64_t h = 0; h < map.height; ++h) {
      for (int64_t w = 0; w < map.width; ++w) {
        const T* pixel = tile + (h * map.width + w) * kBlock;
        O* out = data + h * map.height_stride + w * map.width_stride;
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) out[c] = static_cast<O>(pixel[c]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t h = 0; h < map.height; ++h) {
      O* row = data + c * map.channel_stride + h * map.height_stride;
      const T* pixels = tile + h * map.width * kBlock + c;
      for (int64_t w = 0; w < map.width; ++w) row[w * map.width_stride] = static_cast<O>(pixels[w * kBlock]);
    }
  }
}

// One wide plane: every row of cells is spread along a row of pixels once, then added to the rows it covers.
template <typename O, typename T>
inline void unpool_wide_plane(
    const FeatureMap<O>& map, const T* grad, const Scales& scales, T* plane, T* spread, O* out) {
  for (int64_t k = 0; k < map.height * map.width; ++k) plane[k] = T(0);
  int64_t cell = 0;
  for (int64_t s = 0; s < scales.count; ++s) {
    const int64_t scale = scales.sizes[s];
    for (int64_t i = 0; i < scale; ++i) {
      const Window rows = window(i, scale, map.height);
      for (int64_t w = 0; w < map.width; ++w) spread[w] = T(0);
      for (int64_t j = 0; j < scale; ++j, ++cell) {
        const Window columns = window(j, scale, map.width);
        const T value = grad[cell * map.channels] / static_cast<T>(length(rows) * length(columns));
        for (int64_t w = columns.start; w < columns.stop; ++w) spread[w] += value;
      }
      for (int64_t h = rows.start; h < rows.stop; ++h) {
#pragma omp simd
        for (int64_t w = 0; w < map.width; ++w) plane[h * map.width + w] += spread[w];
      }
    }
  }
  for (int64_t h = 0; h < map.height; ++h) {
#pragma omp simd
    for (int64_t w = 0; w < map.width; ++w) out[h * map.height_stride + w] = static_cast<O>(plane[h * map.width + w]);
  }
}

template <typename O, typename T>
void unpool(
    const FeatureMap<O>& map, const Scales& scales, const T* grad_pooled, T* scratch, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const Block block = block_of(map, item);
    O* data = block_data(map, block);
    const T* grad = grad_pooled + block.image * scales.cells * map.channels + block.channel;
    if (channels_innermost(map)) {
      unpool_tile<kChannelBlock>(grad, map.channels, map.height, map.width, scales, block.count, scratch);
      unpack_tile<kChannelBlock>(map, scratch, block.count, data);
    } else if (map.width_stride == 1 && map.width >= kWiderRow) {
      T* spread = scratch + map.height * map.width;
      for (int64_t c = 0; c < block.count; ++c) {
        unpool_wide_plane(map, grad + c, scales, scratch, spread, data + c * map.channel_stride);
      }
    } else {
      unpool_tile<kPlaneBlock>(grad, map.channels, map.height, map.width, scales, block.count, scratch);
      unpack_tile<kPlaneBlock>(map, scratch, block.count, data);
    }
  }
}
