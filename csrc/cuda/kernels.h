// What the launcher hands to the CUDA kernels: plain structures of raw pointers, and a function that launches each kernel.
// No tensors and no CUDA headers, so that the launcher is plain C++ and the kernels compile without torch.
//
// Sizes: B images, C channels, H x W pixels, K classes, N regions. T is the dtype of the math, float or double.
#pragma once

#include <cstdint>

#include "../common/class_sum.h"
#include "../common/forms.h"
#include "../common/normalize.h"

struct CUstream_st;

namespace icd::cuda {

using Stream = CUstream_st*;

constexpr int kThreads = 256;  // of every block of every kernel
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

enum class Dtype : int32_t { float64, float32, bfloat16, float16 };

template <typename T>
constexpr Dtype kDtype = sizeof(T) == sizeof(double) ? Dtype::float64 : Dtype::float32;

// Scales travel by value in a kernel's arguments (no copy to the device, safe in a graph), so their number is bounded.
constexpr int kMaxScales = 128;

// So that a place in a map or a grid, times a scale, is counted in 32 bits without a sign.
constexpr int64_t kMostScale = 1 << 15;
constexpr int64_t kMostSide = (1 << 16) - 1;  // pixels of a map, each way
constexpr int64_t kMostBlocks = 1 << 24;      // of a launch that pools or unpools: its threads are numbered likewise

// The scales of a grid of cells, cells numbered scale by scale, row-major.
struct Scales {
  int32_t count;
  int32_t cells;
  int32_t sizes[kMaxScales];
};

// A feature map (B, C, H, W) in any layout and dtype.
struct FeatureMap {
  void* data;
  Dtype dtype;
  int64_t batch, channels, height, width;
  int64_t batch_stride, channel_stride, height_stride, width_stride;
};

// How a map is read or written: 16 bytes of neighbouring channels, or planes, staged in shared memory where they fit.
enum class Access : int32_t { channels, channel_vectors, planes, large_planes };

template <typename T>
struct PooledMap {
  FeatureMap map;
  Access access;
  Scales scales;
  T* pooled;               // [B, cells, C]
  int64_t planes;          // channels of such a piece, where planes are staged
  int64_t channel_blocks;  // pieces of an image's channels
  int64_t blocks;          // of the launch
};

// Counters of a launch of `gram`: tickets drawn, and tasks done in each phase. Zero before it.
constexpr int kPhases = 4;
constexpr int kCounters = 1 + kPhases;

template <typename T>
struct PoolArguments {
  PooledMap<T> networks[2];
  int32_t count;
  int* counters;  // to be cleared for a launch of `gram` later in the stream, or null
};

// The incoming gradient of the loss: grad[image · stride]; stride 0 where the loss was reduced. Null data counts as 1.
struct Upstream {
  const void* data;
  Dtype dtype;
  int64_t stride;
};

// A matrix in any layout and dtype.
struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t row_stride, column_stride;
};

// out[m, n] = Σ_k left[m, k] right[n, k], the depth k in `splits` parts that are added later: out is [splits, M, N].
template <typename T>
struct Product {
  Matrix left;  // in the dtype of the math
  Matrix right;
  int64_t rows, columns, depth;
  int64_t splits, split_depth;
  int64_t row_tiles, column_tiles;
  T* out;
  bool upstream_by_row;  // whether left's rows or its columns run over the images' cells
};

// out[k] = Σ_r matrix[r, k] · upstream(r): the gradient by the bias.
struct ColumnSums {
  Matrix matrix;  // in the dtype of the math
  int64_t rows, columns;
  void* out;
  Dtype dtype;
  int64_t blocks;
};

template <typename T>
struct ProductArguments {
  Product<T> products[2];
  int32_t count;
  ColumnSums sums;
  Upstream upstream;
  int64_t cells_per_image;  // rows that share an image's upstream gradient
  int32_t tile;             // rows and columns of a block's tile: 64, or in float32 128
};

// Where the logits of one network's regions come from: parts of a product over the base cells, or a (B, K, N) tensor.
// Region n of image b is the mean over the base cells it covers (folded), or base cell n itself.
struct LogitSource {
  const void* data;
  Dtype dtype;
  int64_t image_stride, cell_stride, class_stride;
  int64_t splits, split_stride;
  const void* bias;  // [K] or null
  Dtype bias_dtype;
  int64_t bias_stride;
  int64_t finest;  // the base grid's side where folded, otherwise 0
};

// Rows of logits alone: out[b, n, k], not normalised.
template <typename T>
struct RowsArguments {
  LogitSource source;
  Scales scales;
  int64_t batch, classes;
  T* out;
};

template <typename T>
struct GramArguments {
  LogitSource sources[2];  // student, teacher
  Scales scales;
  double cell_weights[kMaxScales];  // w_m c_m of a cell of each scale
  Gram gram;
  ClassSum class_sum;
  Normalization normalization;
  T temperature;
  bool per_image;  // reduction "none"
  bool mean;       // reduction "mean"
  Upstream upstream;
  int64_t batch, classes;
  int64_t finest;  // side of the grid the gradient is folded onto, or 0

  T* logits;          // [2, B, N, K], normalised
  T* raw;             // [2, B, N, K] as they come, or null
  T* statistics;      // [B, N], the student's norms or deviations
  T* losses;          // [B, N], row KLs of each region, not weighted
  T* row_statistics;  // [B, N, 4], of the rows of the spatial and the sample form's Grams
  T* class_scratch;   // [blocks, K, kClassScratch<T>], of the class form
  T* grad;            // [B, N, K], or null
  T* folded;          // [B, finest², K], or null
  T* loss;            // [] or [B], or null

  int32_t tile;  // rows of points that a block compares at a time: 16 or kLargePointTile<T>
  double float64_cost;  // float32 instructions that the device does in the time of one of float64
  int64_t tasks[kPhases];
  int64_t blocks;
  int* counters;
};

// The transpose of expanding fine cells to regions: grad_fine[b, cell, k] from grad (B, K, N) in any layout.
template <typename T>
struct FoldArguments {
  LogitSource grad;  // splits 1, no bias
  Scales scales;
  int64_t batch, classes, finest;
  T* out;  // [B, finest², K], or where finest is 0 [B, N, K]
};

// The gradient of gram_kl: out[b, n, k] = saved[b, n, k] · upstream(b)
template <typename T>
struct ScaleArguments {
  const T* saved;
  Upstream upstream;
  int64_t batch, elements;  // elements of an image
  void* out;
  Dtype dtype;
};

template <typename T>
struct UnpoolArguments {
  FeatureMap map;  // data null where the features' gradient is not wanted
  Access access;
  Scales scales;
  const T* grad_pooled;  // [B, cells, C]
  int64_t channel_blocks;
  int64_t blocks;
  const T* partial;  // [splits, elements], parts of the weight's gradient; null where it is not wanted
  int64_t splits, elements;
  void* out;
  Dtype dtype;
  int64_t partial_blocks;
};

// Sizes of the work of a block or thread, by which the launcher counts blocks.
template <typename T>
constexpr int64_t pool_tile() {  // elements of planes that a block stages
  return 32768 / sizeof(T);
}
constexpr int64_t kPoolChannels = 32;    // most planes that a block stages
constexpr int64_t kUnpoolChannels = 16;  // planes that a thread writes
constexpr int64_t kVectorBytes = 16;     // of a map that a thread reads or writes at a time
template <typename T>
constexpr int kLargePointTile = sizeof(T) == sizeof(double) ? 32 : 64;  // as the registers allow
template <typename T>
constexpr int64_t kClassScratch = 3 * sizeof(double) / sizeof(T);  // elements for each class

template <typename T>
int64_t blocks_of(const PoolArguments<T>& arguments) {
  return arguments.networks[0].blocks + (arguments.count > 1 ? arguments.networks[1].blocks : 0);
}
template <typename T>
int64_t blocks_of(const ProductArguments<T>& arguments) {
  int64_t blocks = arguments.sums.blocks;
  for (int i = 0; i < arguments.count; ++i) {
    const Product<T>& product = arguments.products[i];
    blocks += product.row_tiles * product.column_tiles * product.splits;
  }
  return blocks;
}
template <typename T>
int64_t blocks_of(const RowsArguments<T>& arguments) {
  return (arguments.batch * arguments.scales.cells + kWarps - 1) / kWarps;
}
template <typename T>
int64_t blocks_of(const GramArguments<T>& arguments) {
  return arguments.blocks;
}
template <typename T>
int64_t blocks_of(const FoldArguments<T>& arguments) {
  const int64_t cells = arguments.finest == 0 ? arguments.scales.cells : arguments.finest * arguments.finest;
  return (arguments.batch * cells + kWarps - 1) / kWarps;
}
template <typename T>
int64_t blocks_of(const ScaleArguments<T>& arguments) {
  constexpr int64_t kMost = 4096;  // the blocks stride over what is left
  const int64_t blocks = (arguments.batch * arguments.elements + kThreads - 1) / kThreads;
  return blocks < kMost ? blocks : kMost;
}
template <typename T>
int64_t blocks_of(const UnpoolArguments<T>& arguments) {
  return arguments.blocks + arguments.partial_blocks;
}

// Each returns the launch's cudaError_t.
template <typename T>
int launch_pool(const PoolArguments<T>& arguments, Stream stream);
template <typename T>
int launch_product(const ProductArguments<T>& arguments, Stream stream);
template <typename T>
int launch_rows(const RowsArguments<T>& arguments, Stream stream);
template <typename T>
int launch_gram(const GramArguments<T>& arguments, Stream stream);
template <typename T>
int launch_fold(const FoldArguments<T>& arguments, Stream stream);
template <typename T>
int launch_scale(const ScaleArguments<T>& arguments, Stream stream);
template <typename T>
int launch_unpool(const UnpoolArguments<T>& arguments, Stream stream);

}  // namespace icd::cuda
