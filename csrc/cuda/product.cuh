// Products of matrices in the dtype of the math: the projections of both networks in one launch, and in the backward the
// gradients by pooled features, weight and bias in another. A block computes a square tile in registers, 4 x 4 numbers
// for every quarter tile and thread. The depth is summed in order, in parts of fixed length: run to run the same bits.
#pragma once

#include "block.cuh"

namespace icd::cuda {

constexpr int kDepth = 16;   // of a step: elements of the depth held in shared memory
constexpr int kMicro = 4;    // a thread's neighbouring rows and columns
constexpr int kGrid = 16;    // threads along each side of a tile
constexpr int kQuarter = kGrid * kMicro;

template <typename T, int kTile>
struct ProductShared {
  // [depth, row]; four more, so that rows stay aligned and a column of stores spreads over the banks
  alignas(16) T left[kDepth][kTile + 4];
  alignas(16) T right[kDepth][kTile + 4];
};

// A thread's share of one matrix, [row, depth] of elements I: its part of the next step, on its way from global to shared
// memory. Neighbouring threads read along whichever of rows and depth is dense; from one of a thread's elements to its
// next it is always as far, so all places but the first step's are additions.
template <typename I, typename T, int kTile>
class Step {
 public:
  ICD_DEVICE Step(const Matrix& matrix, int64_t row0, int64_t rows, int64_t depth0) : depth_stride_(matrix.column_stride) {
    const int t = static_cast<int>(threadIdx.x);
    const bool along_depth = matrix.column_stride == 1;
    row_ = along_depth ? t / kDepth : t % kTile;
    depth_ = along_depth ? t % kDepth : t / kTile;
    row_step_ = along_depth ? kThreads / kDepth : 0;
    depth_step_ = along_depth ? 0 : kThreads / kTile;
    step_ = row_step_ * matrix.row_stride + depth_step_ * matrix.column_stride;
    rows_ = static_cast<int>(rows - row0 < kTile ? rows - row0 : kTile);
    next_ = static_cast<const I*>(matrix.data) + (row0 + row_) * matrix.row_stride +
        (depth0 + depth_) * matrix.column_stride;
  }

  // The next step, of which `depths` are left.
  ICD_DEVICE void read(int depths) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = row_ + i * row_step_ < rows_ && depth_ + i * depth_step_ < depths;
      values_[i] = inside ? static_cast<T>(next_[i * step_]) : T(0);
    }
    next_ += kDepth * depth_stride_;
  }

  // Times factor(row of the tile, depth of the step), where that is inside.
  template <typename Factor>
  ICD_DEVICE void scale(int depths, Factor factor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = row_ + i * row_step_, depth = depth_ + i * depth_step_;
      if (row < rows_ && depth < depths) values_[i] *= factor(row, depth);
    }
  }

  ICD_DEVICE void write(T (&tile)[kDepth][kTile + 4]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) tile[depth_ + i * depth_step_][row_ + i * row_step_] = values_[i];
  }

 private:
  static constexpr int kCount = kTile * kDepth / kThreads;
  const I* next_;
  int64_t depth_stride_, step_;
  int row_, depth_, row_step_, depth_step_, rows_;
  T values_[kCount];
};

// One thread's part of a tile.
template <typename T, int kTile>
struct TileSums {
  static constexpr int kQuarters = kTile / kQuarter;
  T sums[kQuarters * kMicro][kQuarters * kMicro] = {};

  static ICD_DEVICE void read(const T* row, int place, T (&values)[kQuarters * kMicro]) {
#pragma unroll
    for (int q = 0; q < kQuarters; ++q) {
      const auto pack = *reinterpret_cast<const Pack<T, kMicro>*>(row + q * kQuarter + place * kMicro);
#pragma unroll
      for (int i = 0; i < kMicro; ++i) values[q * kMicro + i] = pack.values[i];
    }
  }

  ICD_DEVICE void add(const ProductShared<T, kTile>& shared) {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      T left[kQuarters * kMicro], right[kQuarters * kMicro];
      read(shared.left[d], t / kGrid, left);
      read(shared.right[d], t % kGrid, right);
#pragma unroll
      for (int i = 0; i < kQuarters * kMicro; ++i) {
#pragma unroll
        for (int j = 0; j < kQuarters * kMicro; ++j) sums[i][j] += left[i] * right[j];
      }
    }
  }

  // Times `factor`.
  ICD_DEVICE void write(T* out, int64_t row0, int64_t rows, int64_t column0, int64_t columns, T factor) const {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kQuarters * kMicro; ++i) {
      const int64_t row = row0 + i / kMicro * kQuarter + t / kGrid * kMicro + i % kMicro;
#pragma unroll
      for (int j = 0; j < kQuarters * kMicro; ++j) {
        const int64_t column = column0 + j / kMicro * kQuarter + t % kGrid * kMicro + j % kMicro;
        if (row < rows && column < columns) out[row * columns + column] = sums[i][j] * factor;
      }
    }
  }
};

// The left matrix is in the dtype of the math, the right one of elements I. An incoming gradient that all images share
// multiplies the sums in the end; where each has its own, the left matrix's elements as they are read.
template <typename I, bool kByImage, typename T, int kTile>
ICD_DEVICE void product_tile(
    const Product<T>& product, const ProductArguments<T>& arguments, int64_t block,
    ProductShared<T, kTile>& shared) {
  const Item tiles = static_cast<Item>(product.row_tiles * product.column_tiles);
  const Item split = static_cast<Item>(block) / tiles, tile = static_cast<Item>(block) - split * tiles;
  const Item columns = static_cast<Item>(product.column_tiles), tile_row = tile / columns;
  const int64_t row0 = static_cast<int64_t>(tile_row) * kTile;
  const int64_t column0 = static_cast<int64_t>(tile - tile_row * columns) * kTile;
  const int64_t begin = split * product.split_depth;
  const int64_t end = begin + product.split_depth < product.depth ? begin + product.split_depth : product.depth;
  const Upstream& upstream = arguments.upstream;
  TileSums<T, kTile> sums;
  Step<T, T, kTile> left(product.left, row0, product.rows, begin);
  Step<I, T, kTile> right(product.right, column0, product.columns, begin);
  const auto read = [&](int64_t depth) {
    const int depths = static_cast<int>(end - depth < kDepth ? end - depth : kDepth);
    left.read(depths);
    right.read(depths);
    if constexpr (kByImage) {
      left.scale(depths, [&](int row, int place) {
        const auto cell = static_cast<Item>(product.upstream_by_row ? row0 + row : depth + place);
        return upstream_of<T>(upstream, cell / static_cast<Item>(arguments.cells_per_image));
      });
    }
  };
  if (begin < end) read(begin);
  for (int64_t depth = begin; depth < end; depth += kDepth) {
    __syncthreads();
    left.write(shared.left);
    right.write(shared.right);
    __syncthreads();
    if (depth + kDepth < end) read(depth + kDepth);  // in flight while this step is summed
    sums.add(shared);
  }
  const T factor = kByImage ? T(1) : upstream_of<T>(upstream, 0);
  T* out = product.out + split * product.rows * product.columns;
  sums.write(out, row0, product.rows, column0, product.columns, factor);
}

// A warp's lanes take neighbouring columns, the warps take turns at the rows.
template <typename T>
ICD_DEVICE void sum_columns(const ProductArguments<T>& arguments, int64_t block, T (&parts)[kWarps][kWarp]) {
  const ColumnSums& sums = arguments.sums;
  const int64_t column = block * kWarp + lane();
  T sum = 0;
  if (column < sums.columns) {
    const T* elements = static_cast<const T*>(sums.matrix.data) + column * sums.matrix.column_stride;
#pragma unroll 4
    for (Item row = warp(); row < static_cast<Item>(sums.rows); row += kWarps) {
      sum += elements[row * sums.matrix.row_stride] *
          upstream_of<T>(arguments.upstream, row / static_cast<Item>(arguments.cells_per_image));
    }
  }
  parts[warp()][lane()] = sum;
  __syncthreads();
  if (warp() != 0 || column >= sums.columns) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += parts[w][lane()];
  store(sums.out, sums.dtype, column, sum);
}

template <typename T>
ICD_DEVICE int64_t product_blocks(const Product<T>& product) {
  return product.row_tiles * product.column_tiles * product.splits;
}

template <typename T, int kTile>
union ProductBlockShared {
  ProductShared<T, kTile> tile;
  T parts[kWarps][kWarp];
};

template <typename T, int kTile>
ICD_DEVICE void product_block(const ProductArguments<T>& arguments, ProductBlockShared<T, kTile>& shared) {
  int64_t block = blockIdx.x;
  for (int i = 0; i < arguments.count; ++i) {
    const int64_t blocks = product_blocks(arguments.products[i]);
    if (block < blocks) {
      const Product<T>& product = arguments.products[i];
      const Upstream& upstream = arguments.upstream;
      const bool by_image = upstream.data != nullptr && upstream.stride != 0;
      return visit_dtype<T>(product.right.dtype, [&](auto right) {
        using I = decltype(right);
        if (by_image) product_tile<I, true>(product, arguments, block, shared.tile);
        else product_tile<I, false>(product, arguments, block, shared.tile);
      });
    }
    block -= blocks;
  }
  sum_columns(arguments, block, shared.parts);
}

}  // namespace icd::cuda
