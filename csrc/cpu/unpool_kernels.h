// The transpose of pooling: every pixel collects the gradients of the cells that cover it.
// Included once for each instruction set, inside its namespace (kernels_table.h).
//
// The ways are those of pool_kernels.h, walked backwards.

// tile[pixel, 0..kChannelBlock) = the shares of every cell that covers the pixel; channels past `count` are left alone.
template <typename T>
inline void unpool_tile(
    const T* grad, int64_t cell_stride, int64_t height, int64_t width, const Scales& scales, int64_t count, T* tile) {
  for (int64_t k = 0; k < height * width * kChannelBlock; ++k) tile[k] = T(0);
  for_each_cell(scales, height, width, [&](int64_t cell, Window rows, Window columns) {
    const T share = T(1) / static_cast<T>(length(rows) * length(columns));
    T value[kChannelBlock];
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) value[c] = grad[cell * cell_stride + c] * share;
    for (int64_t h = rows.start; h < rows.stop; ++h) {
      for (int64_t w = columns.start; w < columns.stop; ++w) {
        T* pixel = tile + (h * width + w) * kChannelBlock;
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) pixel[c] += value[c];
      }
    }
  });
}

template <typename O, typename T>
inline void unpack_tile(const FeatureMap<O>& map, const T* tile, int64_t count, O* data) {
  for (int64_t h = 0; h < map.height; ++h) {
    for (int64_t w = 0; w < map.width; ++w) {
      const T* pixel = tile + (h * map.width + w) * kChannelBlock;
      O* out = data + h * map.height_stride + w * map.width_stride;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) out[c] = static_cast<O>(pixel[c]);
    }
  }
}

// A cell's gradient on the columns of its line: added where the cell before has been, up to `written`, and set behind.
template <typename T>
inline void unpool_cell(const T* grad, const Window& columns, int64_t written, T share, T* line) {
  for (int64_t c = 0; c < kPlaneBlock; c += kVectorLanes<T>) {
    const Vector<T> value = load(grad + c) * share;
    T* pixel = line + columns.start * kPlaneBlock + c;
    int64_t w = columns.start;
    for (; w < written; ++w, pixel += kPlaneBlock) store(pixel, load(pixel) + value);
    for (; w < columns.stop; ++w, pixel += kPlaneBlock) store(pixel, value);
  }
}

// The lines of a block of planes from the gradients of its cells. grad[cell · channels + c]
template <typename T>
inline void unpool_lines(
    const T* grad, int64_t width, const Scales& scales, const Windows& windows, int64_t count, int64_t channels, T* lines) {
  T cell[kPlaneBlock] = {};
  int64_t place = 0;
  for (int64_t s = 0; s < scales.count; place += scales.sizes[s++]) {
    for (int64_t i = 0; i < scales.sizes[s]; ++i, lines += width * kPlaneBlock) {
      int64_t written = 0;
      for (int64_t j = 0; j < scales.sizes[s]; ++j, grad += channels) {
        const Window columns = windows.columns[place + j];
        const T share = T(1) / static_cast<T>(length(windows.rows[place + i]) * length(columns));
        if (count < kPlaneBlock) std::memcpy(cell, grad, count * sizeof(T));
        unpool_cell(count < kPlaneBlock ? cell : grad, columns, written, share, lines);
        written = columns.stop;
      }
    }
  }
}

// out[e] = the sum of the `count` listed lines, in vectors of kCount; the last may overlap the one before. size >= kCount
template <int64_t kCount, typename T>
inline void sum_lines(const T* lines, const int64_t* numbers, int64_t count, int64_t size, T* out) {
  for (int64_t start = 0; start < size; start += kCount) {
    const int64_t e = start + kCount > size ? size - kCount : start;
    Vector<T, kCount> sum = load<kCount>(lines + numbers[0] * size + e);
    for (int64_t i = 1; i < count; ++i) sum += load<kCount>(lines + numbers[i] * size + e);
    store(out + e, sum);
  }
}

// The sum of the lines that cover a row. Few as they mostly are, a loop of a constant length sums them.
template <int64_t kCount, typename T>
inline void sum_covering(const T* lines, const int64_t* covering, int64_t size, T* out) {
  const int64_t count = covering[0], *numbers = covering + 1;
  switch (count) {
    case 1: return sum_lines<kCount>(lines, numbers, 1, size, out);
    case 2: return sum_lines<kCount>(lines, numbers, 2, size, out);
    case 3: return sum_lines<kCount>(lines, numbers, 3, size, out);
    case 4: return sum_lines<kCount>(lines, numbers, 4, size, out);
    default: return sum_lines<kCount>(lines, numbers, count, size, out);
  }
}

// from[0..count) as pixels of a row, `stride` apart.
template <typename O, typename T>
inline void write_row(const T* from, int64_t count, O* row, int64_t stride) {
  if (stride == 1) {
#pragma omp simd
    for (int64_t w = 0; w < count; ++w) row[w] = static_cast<O>(from[w]);
  } else {
    for (int64_t w = 0; w < count; ++w) row[w * stride] = static_cast<O>(from[w]);
  }
}

// Wide planes: their lines are transposed back first. sums: [kPlaneBlock, windows · W]; buffer: [W]
template <int64_t kCount, typename O, typename T>
inline void unpool_wide(
    const FeatureMap<O>& map, const T* lines, int64_t count, const Windows& windows, T* sums, T* buffer, O* planes) {
  const int64_t size = windows.count * map.width;
  transpose_back<kPlaneBlock>(lines, size, sums, size);
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t h = 0; h < map.height; ++h) {
      O* row = planes + c * map.channel_stride + h * map.height_stride;
      if constexpr (std::is_same_v<O, T>) {
        if (map.width_stride == 1) {
          sum_covering<kCount>(sums + c * size, windows.covering_row(h), map.width, row);
          continue;
        }
      }
      sum_covering<kCount>(sums + c * size, windows.covering_row(h), map.width, buffer);
      write_row(buffer, map.width, row, map.width_stride);
    }
  }
}

// Narrow planes: the pixels are summed in a tile, which is transposed back. buffer: [kPlaneBlock, H · W]
template <typename O, typename T>
inline void unpool_narrow(
    const FeatureMap<O>& map, const T* lines, int64_t count, const Windows& windows, T* tile, T* buffer, O* planes) {
  const int64_t pixels = map.height * map.width, size = map.width * kPlaneBlock;
  for (int64_t h = 0; h < map.height; ++h) {
    sum_covering<kVectorLanes<T>>(lines, windows.covering_row(h), size, tile + h * size);
  }
  if constexpr (std::is_same_v<O, T>) {
    if (dense(map) && count == kPlaneBlock) return transpose_back<kPlaneBlock>(tile, pixels, planes, map.channel_stride);
  }
  transpose_back<kPlaneBlock>(tile, pixels, buffer, pixels);
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t h = 0; h < map.height; ++h) {
      O* row = planes + c * map.channel_stride + h * map.height_stride;
      write_row(buffer + c * pixels + h * map.width, map.width, row, map.width_stride);
    }
  }
}

// Of a row that is shorter than a register.
template <typename T>
constexpr int64_t kShortLanes = kVectorLanes<T> < kShortRow ? kVectorLanes<T> : kShortRow;

template <typename O, typename T>
void unpool(
    const FeatureMap<O>& map, const Scales& scales, const T* grad_pooled, T* scratch, int64_t begin, int64_t end) {
  const Windows windows = windows_in(scratch, map, scales);
  const int64_t pixels = map.height * map.width, size = windows.count * map.width * kPlaneBlock;
  for (int64_t item = begin; item < end; ++item) {
    const Block block = block_of(map, item);
    O* data = block_data(map, block);
    const T* grad = grad_pooled + block.image * scales.cells * map.channels + block.channel;
    if (channels_innermost(map)) {
      unpool_tile(grad, map.channels, map.height, map.width, scales, block.count, scratch);
      unpack_tile(map, scratch, block.count, data);
      continue;
    }
    T* lines = scratch;
    unpool_lines(grad, map.width, scales, windows, block.count, map.channels, lines);
    T* rest = lines + size;
    if (map.width < kShortRow) {
      unpool_narrow(map, lines, block.count, windows, rest, rest + pixels * kPlaneBlock, data);
    } else if (map.width < kVectorLanes<T>) {
      unpool_wide<kShortLanes<T>>(map, lines, block.count, windows, rest, rest + size, data);
    } else {
      unpool_wide<kVectorLanes<T>>(map, lines, block.count, windows, rest, rest + size, data);
    }
  }
}
