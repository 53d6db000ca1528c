// Gram matrices of points, for the spatial and the sample form: the entries of a tile of both networks' matrices are
// computed where they are needed and never stored. First each row's maximum, sum and KL; later, when every row's are
// known, the gradient, for which the tile is computed again.
#pragma once

#include <limits>

#include "logits.cuh"

namespace icd::cuda {

constexpr int kPointDepth = 16;
constexpr int kPointGrid = 16;  // threads along each side of a tile
constexpr int kPointRowStatistics = 4;

// Points whose Gram matrix is taken: rows base, base + step, .. of the [B·N, K] logits.
struct Points {
  int64_t base, step, count;
  int scale_index;

  ICD_DEVICE int64_t row(int64_t point) const { return base + point * step; }
};

struct PointTile {
  Points points;
  int64_t first;  // point of the tile
};

// Tiles are numbered group by group: spatial (scale, image), sample (cell).
template <typename T, int kTile>
ICD_DEVICE PointTile point_tile(const GramArguments<T>& arguments, int64_t task) {
  const Scales& scales = arguments.scales;
  if (arguments.gram == Gram::sample) {
    const int64_t tiles = ceil_divide(arguments.batch, kTile), n = task / tiles;
    const int scale_index = cell_of(scales, n, 1, 1).scale_index;
    return {{n, scales.cells, arguments.batch, scale_index}, task % tiles * kTile};
  }
  int64_t first = 0;
  for (int s = 0;; ++s) {
    const int64_t count = static_cast<int64_t>(scales.sizes[s]) * scales.sizes[s];
    const int64_t tiles = ceil_divide(count, kTile);
    if (task < tiles * arguments.batch) {
      return {{task / tiles * scales.cells + first, 1, count, s}, task % tiles * kTile};
    }
    task -= tiles * arguments.batch;
    first += count;
  }
}

// A step of the products: [network, depth, point]
template <typename T, int kTile>
struct PairShared {
  alignas(16) T rows[2][kPointDepth][kTile + 4];
  alignas(16) T columns[2][kPointDepth][kTile + 4];
};

template <typename T, int kTile>
union PointsShared {
  PairShared<T, kTile> pair;
  T weights[kTile][kTile];  // of the gradient: [row, column]
};

// One thread's entries of a tile of both Gram matrices: rows t/16·M .., columns t%16·M ..
template <typename T, int kTile>
struct GramTile {
  static constexpr int kMicro = kTile / kPointGrid;
  T student[kMicro][kMicro], teacher[kMicro][kMicro];

  static ICD_DEVICE int row() { return static_cast<int>(threadIdx.x) / kPointGrid * kMicro; }
  static ICD_DEVICE int column() { return static_cast<int>(threadIdx.x) % kPointGrid * kMicro; }

  // A thread's share of one tile of points, [depth, point]: class k0 + depth of every 16th point.
  struct Stage {
    const T* next;  // its first point's next class
    int64_t step;   // to its next point
    int point, left;

    ICD_DEVICE Stage(const T* logits, const Points& points, int64_t first, int64_t classes)
        : step(kThreads / kPointDepth * points.step * classes),
          point(static_cast<int>(threadIdx.x) / kPointDepth),
          left(static_cast<int>(points.count - first < kTile ? points.count - first : kTile)) {
      next = logits + points.row(first + point) * classes + threadIdx.x % kPointDepth;
    }

    ICD_DEVICE void copy(bool inside, T (&tile)[kPointDepth][kTile + 4]) {
      const int depth = static_cast<int>(threadIdx.x) % kPointDepth;
#pragma unroll
      for (int i = 0; i < kTile * kPointDepth / kThreads; ++i) {
        const int p = point + i * (kThreads / kPointDepth);
        tile[depth][p] = inside && p < left ? next[i * step] : T(0);
      }
      next += kPointDepth;
    }
  };

  static ICD_DEVICE void add(const T (&rows)[kTile + 4], const T (&columns)[kTile + 4], T (&sums)[kMicro][kMicro]) {
    const auto left = *reinterpret_cast<const Pack<T, kMicro>*>(rows + row());
    const auto right = *reinterpret_cast<const Pack<T, kMicro>*>(columns + column());
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
#pragma unroll
      for (int j = 0; j < kMicro; ++j) sums[i][j] += left.values[i] * right.values[j];
    }
  }

  // logits: the student's [B·N, K]; the teacher's follow at `teacher_offset`.
  ICD_DEVICE GramTile(
      const T* logits, int64_t teacher_offset, int64_t classes, const Points& points, int64_t row0, int64_t column0,
      PairShared<T, kTile>& shared)
      : student(), teacher() {
    Stage student_rows(logits, points, row0, classes), student_columns(logits, points, column0, classes);
    Stage teacher_rows(logits + teacher_offset, points, row0, classes);
    Stage teacher_columns(logits + teacher_offset, points, column0, classes);
    for (int64_t k0 = 0; k0 < classes; k0 += kPointDepth) {
      const bool inside = k0 + threadIdx.x % kPointDepth < classes;
      __syncthreads();
      student_rows.copy(inside, shared.rows[0]);
      teacher_rows.copy(inside, shared.rows[1]);
      student_columns.copy(inside, shared.columns[0]);
      teacher_columns.copy(inside, shared.columns[1]);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kPointDepth; ++d) {
        add(shared.rows[0][d], shared.columns[0][d], student);
        add(shared.rows[1][d], shared.columns[1][d], teacher);
      }
    }
  }
};

// Largest entry and sum of exponentials of a row, entry by entry or part by part.
template <typename T>
struct RowSum {
  // Finite, so that an empty part has exp(top - top) = 1 times a sum of 0.
  T top = std::numeric_limits<T>::lowest(), sum = 0;

  template <int kCount>
  ICD_DEVICE void add(const T (&entries)[kCount], int64_t count, T inverse_temperature) {
    T highest = top;
#pragma unroll
    for (int j = 0; j < kCount; ++j) highest = j < count && entries[j] > highest ? entries[j] : highest;
    sum *= exp_nonpositive((top - highest) * inverse_temperature);
    top = highest;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      sum += j < count ? exp_nonpositive((entries[j] - top) * inverse_temperature) : T(0);
    }
  }

  // Joins the parts of the threads along a row of the tile.
  ICD_DEVICE void join_lanes(T inverse_temperature) {
    for (int step = kPointGrid / 2; step > 0; step /= 2) {
      const T other_top = __shfl_xor_sync(kAllLanes, top, step), other_sum = __shfl_xor_sync(kAllLanes, sum, step);
      const T highest = other_top > top ? other_top : top;
      // The two products change places between the two lanes, and their sum is the same bits in both.
      sum = sum * exp_nonpositive((top - highest) * inverse_temperature) +
          other_sum * exp_nonpositive((other_top - highest) * inverse_temperature);
      top = highest;
    }
  }
};

// How many of a thread's kMicro columns, from `first` on, exist.
ICD_DEVICE int64_t columns_left(const Points& points, int64_t first) { return points.count - first; }

// losses[row] and row_statistics[row] (tops and shares of student and teacher) of a tile's rows.
template <typename T, int kTile>
ICD_DEVICE void point_rows(const GramArguments<T>& arguments, int64_t task, PointsShared<T, kTile>& shared) {
  using Tile = GramTile<T, kTile>;
  constexpr int kMicro = Tile::kMicro;
  const PointTile tile = point_tile<T, kTile>(arguments, task);
  const Points& points = tile.points;
  const int64_t first = tile.first + Tile::row();
  if (arguments.cell_weights[points.scale_index] == 0) {
    const int64_t point = tile.first + threadIdx.x;
    if (threadIdx.x < kTile && point < points.count) arguments.losses[points.row(point)] = T(0);
    return;
  }
  const int64_t teacher_offset = rows_of(arguments.scales, arguments.batch) * arguments.classes;
  const T inverse_temperature = T(1) / arguments.temperature;
  const auto gram = [&](int64_t column0) {
    return Tile(
        arguments.logits, teacher_offset, arguments.classes, points, tile.first, column0, shared.pair);
  };
  RowSum<T> student[kMicro], teacher[kMicro];
  Tile entries = gram(0);
  for (int64_t column0 = 0;;) {
    const int64_t left = columns_left(points, column0 + Tile::column());
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      student[i].add(entries.student[i], left, inverse_temperature);
      teacher[i].add(entries.teacher[i], left, inverse_temperature);
    }
    if ((column0 += kTile) >= points.count) break;
    entries = gram(column0);
  }
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    student[i].join_lanes(inverse_temperature);
    teacher[i].join_lanes(inverse_temperature);
  }
  T kl[kMicro] = {};
  for (int64_t column0 = 0; column0 < points.count; column0 += kTile) {
    if (points.count > kTile) entries = gram(column0);  // a matrix of one tile is still there
    const int64_t left = columns_left(points, column0 + Tile::column());
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      const T s_share = T(1) / student[i].sum, t_share = T(1) / teacher[i].sum;
      const T log_ratio = std::log(student[i].sum * t_share);
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        const T s = (entries.student[i][j] - student[i].top) * inverse_temperature;
        const T t = (entries.teacher[i][j] - teacher[i].top) * inverse_temperature;
        const T term = kl_term(exp_nonpositive(t) * t_share, exp_nonpositive(s) * s_share, s - t - log_ratio);
        kl[i] += j < left ? term : T(0);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    kl[i] = sum_lanes(kl[i], kPointGrid);
    if (Tile::column() != 0 || first + i >= points.count) continue;
    const int64_t row = points.row(first + i);
    arguments.losses[row] = kl[i];
    T* statistics = arguments.row_statistics + row * kPointRowStatistics;
    statistics[0] = student[i].top;
    statistics[1] = T(1) / student[i].sum;
    statistics[2] = teacher[i].top;
    statistics[3] = T(1) / teacher[i].sum;
  }
}

// D = q - p of one entry, from the statistics of its row.
template <typename T>
ICD_DEVICE T difference(T student, T teacher, const T* statistics, T inverse_temperature) {
  return exp_nonpositive((student - statistics[0]) * inverse_temperature) * statistics[1] -
      exp_nonpositive((teacher - statistics[2]) * inverse_temperature) * statistics[3];
}

// What a region's KL counts in the gradient.
template <typename T>
ICD_DEVICE T row_weight(const GramArguments<T>& arguments, int64_t row, int scale_index) {
  const T share = arguments.mean ? T(1) / static_cast<T>(arguments.batch) : T(1);
  return share * upstream_of<T>(arguments.upstream, row / arguments.scales.cells) *
      static_cast<T>(arguments.cell_weights[scale_index]);
}

// shared.weights[i, j] = (w_i D_ij + w_j D_ji)/τ
template <typename T, int kTile>
ICD_DEVICE void pair_weights(
    const GramArguments<T>& arguments, const PointTile& tile, int64_t column0, PointsShared<T, kTile>& shared) {
  using Tile = GramTile<T, kTile>;
  const Points& points = tile.points;
  const int64_t teacher_offset = rows_of(arguments.scales, arguments.batch) * arguments.classes;
  const T inverse_temperature = T(1) / arguments.temperature;
  const Tile gram(
      arguments.logits, teacher_offset, arguments.classes, points, tile.first, column0, shared.pair);
  __syncthreads();  // the weights take the place of the products' tiles
#pragma unroll
  for (int i = 0; i < Tile::kMicro; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kMicro; ++j) {
      const int64_t p = tile.first + Tile::row() + i, other = column0 + Tile::column() + j;
      T weight = 0;
      if (p < points.count && other < points.count) {
        const int64_t row = points.row(p), column = points.row(other);
        const T s = gram.student[i][j], t = gram.teacher[i][j];
        const T* statistics = arguments.row_statistics;
        weight = row_weight(arguments, row, points.scale_index) *
                difference(s, t, statistics + row * kPointRowStatistics, inverse_temperature) +
            row_weight(arguments, column, points.scale_index) *
                difference(s, t, statistics + column * kPointRowStatistics, inverse_temperature);
      }
      shared.weights[Tile::row() + i][Tile::column() + j] = weight * inverse_temperature;
    }
  }
  __syncthreads();
}

// grad[row, k] (+)= Σ_j weights[row, j] z_j[k] over a tile of columns; a thread takes neighbouring classes in turn.
template <typename T, int kTile>
ICD_DEVICE void add_pairs(
    const GramArguments<T>& arguments, const PointTile& tile, int64_t column0, const T (&weights)[kTile][kTile]) {
  constexpr int kRows = 16;
  const Points& points = tile.points;
  const int64_t left = points.count - column0, classes = arguments.classes;
  const int columns = static_cast<int>(left < kTile ? left : kTile);
  for (int64_t k = threadIdx.x; k < classes; k += kThreads) {
    for (int first = 0; first < kTile && tile.first + first < points.count; first += kRows) {
      T sums[kRows] = {};
      for (int j = 0; j < columns; ++j) {
        const T z = arguments.logits[points.row(column0 + j) * classes + k];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[r] += weights[first + r][j] * z;
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t p = tile.first + first + r;
        if (p >= points.count) continue;
        T* grad = arguments.grad + points.row(p) * classes + k;
        *grad = column0 == 0 ? sums[r] : *grad + sums[r];
      }
    }
  }
}

// The gradient by the raw logits of a tile's rows.
template <typename T, int kTile>
ICD_DEVICE void point_gradients(const GramArguments<T>& arguments, int64_t task, PointsShared<T, kTile>& shared) {
  const PointTile tile = point_tile<T, kTile>(arguments, task);
  const Points& points = tile.points;
  const int64_t classes = arguments.classes;
  const bool counts = arguments.cell_weights[points.scale_index] != 0;
  for (int64_t column0 = 0; counts && column0 < points.count; column0 += kTile) {
    pair_weights<T, kTile>(arguments, tile, column0, shared);
    add_pairs<T, kTile>(arguments, tile, column0, shared.weights);
    __syncthreads();
  }
  for (int64_t p = tile.first + warp(); p < tile.first + kTile && p < points.count; p += kWarps) {
    const int64_t row = points.row(p);
    T* grad = arguments.grad + row * classes;
    if (counts) {
      normalize_row_backward(
          arguments.normalization, arguments.logits + row * classes, arguments.statistics[row], classes, T(1), grad);
    } else {
      for (int64_t k = lane(); k < classes; k += kWarp) grad[k] = T(0);
    }
  }
}

}  // namespace icd::cuda
