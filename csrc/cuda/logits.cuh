// Rows of local logits: a warp takes one region's K logits, adds the parts of the product that made them, averages fine
// cells into coarse ones, normalises; and the transposes of these. Lanes take neighbouring classes.
#pragma once

#include "block.cuh"

namespace icd::cuda {

ICD_DEVICE int64_t rows_of(const Scales& scales, int64_t batch) { return batch * scales.cells; }

template <typename T>
ICD_DEVICE T base_logit(const LogitSource& source, int64_t image, int64_t cell, int64_t k) {
  const int64_t place = image * source.image_stride + cell * source.cell_stride + k * source.class_stride;
  T sum = load<T>(source.data, source.dtype, place);
  for (int64_t part = 1; part < source.splits; ++part) {
    sum += load<T>(source.data, source.dtype, place + part * source.split_stride);
  }
  return sum;
}

// Logit k of region n of an image.
template <typename T>
ICD_DEVICE T region_logit(const LogitSource& source, const Cell& cell, int64_t image, int64_t n, int64_t k) {
  T logit;
  if (source.finest == 0) {
    logit = base_logit<T>(source, image, n, k);
  } else {
    T sum = 0;
    for (int64_t h = cell.rows.start; h < cell.rows.stop; ++h) {
      for (int64_t w = cell.columns.start; w < cell.columns.stop; ++w) {
        sum += base_logit<T>(source, image, h * source.finest + w, k);
      }
    }
    logit = sum / static_cast<T>(area(cell));
  }
  return source.bias == nullptr ? logit : logit + load<T>(source.bias, source.bias_dtype, k * source.bias_stride);
}

// out[k], k < K
template <typename T>
ICD_DEVICE void region_row(
    const LogitSource& source, const Scales& scales, int64_t image, int64_t n, int64_t classes, T* out) {
  const Cell cell = cell_of(scales, n, source.finest, source.finest);
  for (int64_t k = lane(); k < classes; k += kWarp) out[k] = region_logit<T>(source, cell, image, n, k);
}

// In place on a row that each lane wrote itself; gives spread · the norm, or 1. Sums are float64, as on the CPU: a
// z-score's rounding is magnified by exponents of up to K/temperature, and squares of float32 cannot overflow.
template <typename T>
ICD_DEVICE T normalize_row(const Normalization& by, int64_t classes, T* row) {
  if (by.centre == 0 && by.spread == 0) return T(1);
  double mean = 0;
  if (by.centre != 0) {
    double sum = 0;
    for (int64_t k = lane(); k < classes; k += kWarp) sum += static_cast<double>(row[k]);
    mean = by.centre * sum_lanes(sum) / static_cast<double>(classes);
  }
  double statistic = 1;
  if (by.spread != 0) {
    double square = 0;
    for (int64_t k = lane(); k < classes; k += kWarp) {
      const double centred = static_cast<double>(row[k]) - mean;
      square += centred * centred;
    }
    statistic = by.spread * std::sqrt(sum_lanes(square));
  }
  const double share = 1 / floor_statistic(statistic);
  for (int64_t k = lane(); k < classes; k += kWarp) {
    row[k] = static_cast<T>((static_cast<double>(row[k]) - mean) * share);
  }
  return static_cast<T>(statistic);
}

// The gradient by the raw logits from that by the normalised ones, `scale` times, in place.
template <typename T>
ICD_DEVICE void normalize_row_backward(
    const Normalization& by, const T* normalized, T statistic, int64_t classes, T scale, T* grad) {
  T inner = 0, mean = 0;
  if (by.spread != 0) {
    for (int64_t k = lane(); k < classes; k += kWarp) inner += normalized[k] * (grad[k] * scale);
    inner = static_cast<T>(by.spread * by.spread) * sum_lanes(inner);
  }
  if (by.centre != 0) {
    for (int64_t k = lane(); k < classes; k += kWarp) mean += grad[k] * scale;
    mean = static_cast<T>(by.centre) * sum_lanes(mean) / static_cast<T>(classes);
  }
  for (int64_t k = lane(); k < classes; k += kWarp) {
    grad[k] = normalize_derivative(grad[k] * scale, normalized[k], mean, inner, statistic);
  }
}

// out[k] of fine cell `cell`: the shares of the regions over it.
template <typename T>
ICD_DEVICE void fold_row(
    const LogitSource& grad, const Scales& scales, int64_t finest, int64_t image, int64_t cell, int64_t classes,
    T* out) {
  for (int64_t k = lane(); k < classes; k += kWarp) {
    T sum = 0;
    for_each_covering<T>(scales, finest, finest, cell / finest, cell % finest, [&](int64_t n, T share) {
      sum += share * base_logit<T>(grad, image, n, k);
    });
    out[k] = sum;
  }
}

template <typename T>
ICD_DEVICE void rows_block(const RowsArguments<T>& arguments) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp();
  const int64_t regions = arguments.scales.cells;
  if (row >= arguments.batch * regions) return;
  region_row(
      arguments.source, arguments.scales, row / regions, row % regions, arguments.classes,
      arguments.out + row * arguments.classes);
}

template <typename T>
ICD_DEVICE void fold_block(const FoldArguments<T>& arguments) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp();
  const int64_t finest = arguments.finest;
  const int64_t cells = finest == 0 ? arguments.scales.cells : finest * finest;
  if (row >= arguments.batch * cells) return;
  const int64_t image = row / cells, cell = row % cells;
  T* out = arguments.out + row * arguments.classes;
  if (finest != 0) return fold_row(arguments.grad, arguments.scales, finest, image, cell, arguments.classes, out);
  for (int64_t k = lane(); k < arguments.classes; k += kWarp) out[k] = base_logit<T>(arguments.grad, image, cell, k);
}

template <typename T>
ICD_DEVICE void scale_block(const ScaleArguments<T>& arguments) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t count = arguments.batch * arguments.elements;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < count; e += step) {
    const T value = arguments.saved[e] * upstream_of<T>(arguments.upstream, e / arguments.elements);
    store(arguments.out, arguments.dtype, e, value);
  }
}

}  // namespace icd::cuda
