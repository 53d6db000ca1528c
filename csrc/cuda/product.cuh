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

// A thread's share of one matrix's next step, on its way from global to shared memory.
template <typename T, int kTile>
struct Step {
  static constexpr int kCount = kTile * kDepth / kThreads;
  T values[kCount];

  // Neighbouring threads read along whichever of rows and depth is dense.
  static ICD_DEVICE void place(const Matrix& matrix, int i, int& row, int& depth) {
    const int t = static_cast<int>(threadIdx.x);
    if (matrix.column_stride == 1) {
      row = t / kDepth + i * (kThreads / kDepth);
      depth = t % kDepth;
    } else {
      row = (t + i * kThreads) % kTile;
      depth = (t + i * kThreads) / kTile;
    }
  }

  ICD_DEVICE void read(const Matrix& matrix, int64_t row0, int64_t rows, int64_t depth0, int64_t depths) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      int row, depth;
      place(matrix, i, row, depth);
      const int64_t r = row0 + row, d = depth0 + depth;
      values[i] = r < rows && d < depths
          ? load<T>(matrix.data, matrix.dtype, r * matrix.row_stride + d * matrix.column_stride)
          : T(0);
    }
  }

  // By the incoming gradient of the image that a row, or a place along the depth, belongs to.
  ICD_DEVICE void scale(
      const Matrix& matrix, const Upstream& upstream, bool by_row, int64_t per_image, int64_t row0, int64_t rows,
      int64_t depth0, int64_t depths) {
    if (upstream.data == nullptr) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      int row, depth;
      place(matrix, i, row, depth);
      const int64_t place = by_row ? row0 + row : depth0 + depth;
      if (place < (by_row ? rows : depths)) values[i] *= upstream_of<T>(upstream, place / per_image);
    }
  }

  ICD_DEVICE void write(const Matrix& matrix, T (&tile)[kDepth][kTile + 4]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      int row, depth;
      place(matrix, i, row, depth);
      tile[depth][row] = values[i];
    }
  }
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

  ICD_DEVICE void write(T* out, int64_t row0, int64_t rows, int64_t column0, int64_t columns) const {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kQuarters * kMicro; ++i) {
      const int64_t row = row0 + i / kMicro * kQuarter + t / kGrid * kMicro + i % kMicro;
#pragma unroll
      for (int j = 0; j < kQuarters * kMicro; ++j) {
        const int64_t column = column0 + j / kMicro * kQuarter + t % kGrid * kMicro + j % kMicro;
        if (row < rows && column < columns) out[row * columns + column] = sums[i][j];
      }
    }
  }
};

template <typename T, int kTile>
ICD_DEVICE void product_tile(
    const Product<T>& product, const ProductArguments<T>& arguments, int64_t block,
    ProductShared<T, kTile>& shared) {
  const int64_t tiles = product.row_tiles * product.column_tiles;
  const int64_t row0 = block % tiles / product.column_tiles * kTile, column0 = block % product.column_tiles * kTile;
  const int64_t split = block / tiles;
  const int64_t begin = split * product.split_depth;
  const int64_t end = begin + product.split_depth < product.depth ? begin + product.split_depth : product.depth;
  TileSums<T, kTile> sums;
  Step<T, kTile> left, right;
  const auto read = [&](int64_t depth) {
    left.read(product.left, row0, product.rows, depth, end);
    left.scale(
        product.left, arguments.upstream, product.upstream_by_row, arguments.cells_per_image, row0, product.rows, depth,
        end);
    right.read(product.right, column0, product.columns, depth, end);
  };
  if (begin < end) read(begin);
  for (int64_t depth = begin; depth < end; depth += kDepth) {
    __syncthreads();
    left.write(product.left, shared.left);
    right.write(product.right, shared.right);
    __syncthreads();
    if (depth + kDepth < end) read(depth + kDepth);  // in flight while this step is summed
    sums.add(shared);
  }
  sums.write(product.out + split * product.rows * product.columns, row0, product.rows, column0, product.columns);
}

// A warp's lanes take neighbouring columns, the warps take turns at the rows.
template <typename T>
ICD_DEVICE void sum_columns(const ProductArguments<T>& arguments, int64_t block, T (&parts)[kWarps][kWarp]) {
  const ColumnSums& sums = arguments.sums;
  const int64_t column = block * kWarp + lane();
  T sum = 0;
  if (column < sums.columns) {
#pragma unroll 4
    for (int64_t row = warp(); row < sums.rows; row += kWarps) {
      sum += load<T>(
                 sums.matrix.data, sums.matrix.dtype,
                 row * sums.matrix.row_stride + column * sums.matrix.column_stride) *
          upstream_of<T>(arguments.upstream, row / arguments.cells_per_image);
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
    if (block < blocks) return product_tile(arguments.products[i], arguments, block, shared.tile);
    block -= blocks;
  }
  sum_columns(arguments, block, shared.parts);
}

}  // namespace icd::cuda
