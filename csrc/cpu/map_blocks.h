// What pooling and its transpose share: blocks of channels, the cells' windows, and planes as they are read.
// Included once for each instruction set, inside its namespace (kernels_table.h).
//
// A block of channels is the unit of work, because cells are summed with the channels across the vector.

constexpr int64_t kPlaneBlock = 16;    // one cache line of float for each pixel of the tile
constexpr int64_t kChannelBlock = 64;  // long enough runs for the prefetcher, short enough for registers
constexpr int64_t kWideRow = 16;       // pixels of a row that fill a vector: read without a transposition from here on
constexpr int64_t kShortRow = 8;       // written without one from here on
constexpr int64_t kPixelStep = 16;     // pixels of a block that are transposed between requests for later ones
constexpr int64_t kLine = 64;          // bytes of a cache line

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

// The windows of all scales along both axes, scale by scale: divided once, not for every plane.
struct Windows {
  Window* rows;
  Window* columns;
  int64_t* covering;  // [H, 1 + count]: how many windows cover a row of pixels, and their numbers
  int64_t count;

  const int64_t* covering_row(int64_t h) const { return covering + h * (1 + count); }
};

inline int64_t window_count(const Scales& scales) {
  int64_t count = 0;
  for (int64_t s = 0; s < scales.count; ++s) count += scales.sizes[s];
  return count;
}

// Elements of T, float or double, that `windows_in` takes from a thread's scratch.
template <typename I, typename T>
inline int64_t windows_scratch(const FeatureMap<I>& map, const Scales& scales) {
  const int64_t count = window_count(scales);
  return (2 * count * sizeof(Window) + map.height * (1 + count) * sizeof(int64_t) + kLine) / sizeof(T) + 1;
}

// Fills the windows into the scratch, and moves it to the first cache line behind them.
template <typename I, typename T>
inline Windows windows_in(T*& scratch, const FeatureMap<I>& map, const Scales& scales) {
  const int64_t count = window_count(scales);
  Window* rows = reinterpret_cast<Window*>(scratch);
  Window* columns = rows + count;
  int64_t* covering = reinterpret_cast<int64_t*>(columns + count);
  for (int64_t h = 0; h < map.height; ++h) covering[h * (1 + count)] = 0;
  for (int64_t s = 0, place = 0; s < scales.count; ++s) {
    for (int64_t i = 0; i < scales.sizes[s]; ++i, ++place) {
      rows[place] = window(i, scales.sizes[s], map.height);
      columns[place] = window(i, scales.sizes[s], map.width);
      for (int64_t h = rows[place].start; h < rows[place].stop; ++h) {
        int64_t* list = covering + h * (1 + count);
        list[++list[0]] = place;
      }
    }
  }
  const uintptr_t end = reinterpret_cast<uintptr_t>(covering + map.height * (1 + count));
  scratch = reinterpret_cast<T*>((end + kLine - 1) / kLine * kLine);
  return {rows, columns, covering, count};
}

// Pixels follow each other row by row, without gaps.
template <typename I>
inline bool dense(const FeatureMap<I>& map) {
  return map.width_stride == 1 && map.height_stride == map.width;
}

// In elements of T, what `pool` and `unpool` take: the windows; a block's lines twice and one plane, or its lines, its tile
// and its planes.
template <typename I, typename T>
int64_t map_scratch(const FeatureMap<I>& map, const Scales& scales) {
  const int64_t windows = windows_scratch<I, T>(map, scales), pixels = map.height * map.width;
  if (channels_innermost(map)) return windows + pixels * kChannelBlock;
  const int64_t lines = window_count(scales) * map.width * kPlaneBlock;
  const int64_t by_lines = lines + pixels, by_tile = 2 * pixels * kPlaneBlock;
  return windows + lines + (map.width >= kWideRow || by_lines > by_tile ? by_lines : by_tile);
}
