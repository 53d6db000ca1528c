// Pooling a feature map into cells.
// Included once for each instruction set, inside its namespace (kernels_table.h).
//
// With its channels innermost (channels-last, token grids), a map is summed as it lies. Otherwise a block of planes becomes
// lines, a row of sums for each window of rows, with the channels innermost: wide rows are summed downwards first and
// then transposed, narrow ones are transposed first.

// pooled[cell, 0..count) for a tile with its channels innermost: partial sums of a row or a few, then the sum of these.
template <int64_t kBlock, typename I, typename T>
inline void pool_tile(const FeatureMap<I>& map, const I* tile, const Scales& scales, int64_t count, T* pooled) {
  for_each_cell(scales, map.height, map.width, [&](int64_t cell, Window rows, Window columns) {
    T sum[kBlock] = {};
    const int64_t run = (kPartialSum + length(columns) - 1) / length(columns);  // rows of a partial sum
    for (int64_t first = rows.start; first < rows.stop; first += run) {
      T partial[kBlock] = {};
      for (int64_t h = first; h < (first + run < rows.stop ? first + run : rows.stop); ++h) {
        for (int64_t w = columns.start; w < columns.stop; ++w) {
          const I* pixel = tile + h * map.height_stride + w * map.width_stride;
#pragma omp simd
          for (int64_t c = 0; c < count; ++c) partial[c] += static_cast<T>(pixel[c]);
        }
      }
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) sum[c] += partial[c];
    }
    const T pixels = static_cast<T>(length(rows) * length(columns));
    T* out = pooled + cell * map.channels;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) out[c] = sum[c] / pixels;
  });
}

// A plane of T without gaps: where it lies, or a copy in `buffer`.
template <typename I, typename T>
inline const T* dense_plane(const FeatureMap<I>& map, const I* plane, T* buffer) {
  if constexpr (std::is_same_v<I, T>) {
    if (dense(map)) return plane;
  }
  for (int64_t h = 0; h < map.height; ++h) {
    const I* row = plane + h * map.height_stride;
    T* out = buffer + h * map.width;
    if (map.width_stride == 1) {
#pragma omp simd
      for (int64_t w = 0; w < map.width; ++w) out[w] = static_cast<T>(row[w]);
    } else {
      for (int64_t w = 0; w < map.width; ++w) out[w] = static_cast<T>(row[w * map.width_stride]);
    }
  }
  return buffer;
}

// Asks for pixels ahead of time, into the second cache: the rows of a plane are too short for the prefetcher. Where the map
// has ended, the processor ignores it.
template <typename I>
inline void prefetch(const I* first, int64_t count) {
  const char* from = reinterpret_cast<const char*>(first);
  for (int64_t byte = 0; byte < count * int64_t{sizeof(I)}; byte += kLine) __builtin_prefetch(from + byte, 0, 2);
}

// Whether the planes that come next follow without gaps.
template <typename I>
inline bool planes_follow(const FeatureMap<I>& map) {
  return dense(map) && map.channel_stride == map.height * map.width;
}

// kSums vectors of a row at once; those past the row's end move back to it, and sum the same again.
template <int64_t kSums, typename T>
inline void sum_run(const T* rows, int64_t stride, int64_t height, int64_t first, int64_t last, T* sums) {
  int64_t places[kSums];
  for (int64_t r = 0; r < kSums; ++r) {
    const int64_t place = first + r * kVectorLanes<T>;
    places[r] = place < last ? place : last;
  }
  Vector<T> sum[kSums];
  sum_vectors<kSums>(rows, places, stride, height, sum);
  for (int64_t r = 0; r < kSums; ++r) store(sums + places[r], sum[r]);
}

// sums[w] = Σ_h rows[h, w]. width >= kVectorLanes
template <typename T>
inline void sum_downwards(const T* rows, int64_t stride, int64_t height, int64_t width, T* sums) {
  const int64_t last = width - kVectorLanes<T>;
  int64_t first = 0;
  for (; first + kVectorLanes<T> < last; first += 4 * kVectorLanes<T>) sum_run<4>(rows, stride, height, first, last, sums);
  if (first < last) {
    sum_run<2>(rows, stride, height, first, last, sums);
  } else if (first < width) {
    sum_run<1>(rows, stride, height, first, last, sums);
  }
}

// lines[window of rows, w, c], each plane's rows summed downwards first. sums: [kPlaneBlock, windows · W]
template <typename I, typename T>
inline void wide_lines(
    const FeatureMap<I>& map, const I* planes, int64_t count, const Windows& windows, T* buffer, T* sums, T* lines) {
  const int64_t size = windows.count * map.width;
  for (int64_t c = 0; c < count; ++c) {
    const I* plane = planes + c * map.channel_stride;
    if (planes_follow(map)) prefetch(plane + 2 * map.channel_stride, map.channel_stride);
    const T* pixels = dense_plane(map, plane, buffer);
    for (int64_t i = 0; i < windows.count; ++i) {
      const Window rows = windows.rows[i];
      T* line = sums + c * size + i * map.width;
      sum_downwards(pixels + rows.start * map.width, map.width, length(rows), map.width, line);
    }
  }
  for (int64_t e = count * size; e < kPlaneBlock * size; ++e) sums[e] = T(0);
  transpose<kPlaneBlock>(sums, size, size, lines);
}

// tile[pixel, c] of a whole block of dense planes. The next block is asked for piece by piece: requests that are made all
// at once wait for each other, and the sums with them.
template <typename T>
inline void transpose_planes(const FeatureMap<T>& map, const T* planes, T* tile) {
  const int64_t pixels = map.height * map.width, step = pixels < kPixelStep ? pixels : kPixelStep;
  const T* next = planes + kPlaneBlock * map.channel_stride;
  for (int64_t start = 0; start < pixels; start += step) {
    if (planes_follow(map)) prefetch(next + start * kPlaneBlock, step * kPlaneBlock);
    const int64_t pixel = start + step < pixels ? start : pixels - step;  // the last may overlap those before
    transpose<kPlaneBlock>(planes + pixel, map.channel_stride, step, tile + pixel * kPlaneBlock);
  }
}

// The same for narrow rows: the block is transposed first. buffer, tile: [H · W, kPlaneBlock]
template <typename I, typename T>
inline void narrow_lines(
    const FeatureMap<I>& map, const I* planes, int64_t count, const Windows& windows, T* buffer, T* tile, T* lines) {
  const int64_t pixels = map.height * map.width, row = map.width * kPlaneBlock;
  const bool as_it_lies = std::is_same_v<I, T> && dense(map) && count == kPlaneBlock;
  if constexpr (std::is_same_v<I, T>) {
    if (as_it_lies) transpose_planes(map, planes, tile);
  }
  if (!as_it_lies) {
    if (planes_follow(map)) prefetch(planes + kPlaneBlock * pixels, kPlaneBlock * pixels);
    for (int64_t c = 0; c < count; ++c) {
      T* copy = buffer + c * pixels;
      const T* plane = dense_plane(map, planes + c * map.channel_stride, copy);
      if (plane != copy) std::memcpy(copy, plane, pixels * sizeof(T));
    }
    for (int64_t e = count * pixels; e < kPlaneBlock * pixels; ++e) buffer[e] = T(0);
    transpose<kPlaneBlock>(buffer, pixels, pixels, tile);
  }
  for (int64_t i = 0; i < windows.count; ++i) {
    const Window rows = windows.rows[i];
    sum_downwards(tile + rows.start * row, row, length(rows), row, lines + i * row);
  }
}

// One cell of a block: the mean of `count` pixels, which its columns of a line sum up to.
template <typename T>
inline void pool_cell(const T* line, const Window& columns, int64_t count, T* pooled) {
  const T pixels = static_cast<T>(count);
  const int64_t start = 0;
  for (int64_t c = 0; c < kPlaneBlock; c += kVectorLanes<T>) {
    Vector<T> sum;
    sum_vectors<1>(line + columns.start * kPlaneBlock + c, &start, kPlaneBlock, length(columns), &sum);
    store(pooled + c, sum / pixels);
  }
}

// pooled[cell, c] of a block of planes from its lines.
template <typename T>
inline void pool_lines(
    const T* lines, int64_t width, const Scales& scales, const Windows& windows, int64_t count, int64_t channels, T* pooled) {
  int64_t place = 0;
  for (int64_t s = 0; s < scales.count; place += scales.sizes[s++]) {
    for (int64_t i = 0; i < scales.sizes[s]; ++i) {
      const T* line = lines + (place + i) * width * kPlaneBlock;
      for (int64_t j = 0; j < scales.sizes[s]; ++j, pooled += channels) {
        const Window columns = windows.columns[place + j];
        const int64_t pixels = length(windows.rows[place + i]) * length(columns);
        if (count == kPlaneBlock) {
          pool_cell(line, columns, pixels, pooled);
        } else {
          T cell[kPlaneBlock];
          pool_cell(line, columns, pixels, cell);
          for (int64_t c = 0; c < count; ++c) pooled[c] = cell[c];
        }
      }
    }
  }
}

template <typename I, typename T>
void pool(const FeatureMap<I>& map, const Scales& scales, T* pooled, T* scratch, int64_t begin, int64_t end) {
  const Windows windows = windows_in(scratch, map, scales);
  const int64_t pixels = map.height * map.width, size = windows.count * map.width * kPlaneBlock;
  for (int64_t item = begin; item < end; ++item) {
    const Block block = block_of(map, item);
    const I* data = block_data(map, block);
    T* out = pooled + block.image * scales.cells * map.channels + block.channel;
    if (channels_innermost(map)) {
      // Two calls, so that the full block's loops have a constant length.
      if (block.count == kChannelBlock) {
        pool_tile<kChannelBlock>(map, data, scales, kChannelBlock, out);
      } else {
        pool_tile<kChannelBlock>(map, data, scales, block.count, out);
      }
      continue;
    }
    T* lines = scratch;
    if (map.width >= kWideRow) {
      T* sums = lines + size;
      wide_lines(map, data, block.count, windows, sums + size, sums, lines);
    } else {
      T* tile = lines + size;
      narrow_lines(map, data, block.count, windows, tile + pixels * kPlaneBlock, tile, lines);
    }
    pool_lines(lines, map.width, scales, windows, block.count, map.channels, out);
  }
}
