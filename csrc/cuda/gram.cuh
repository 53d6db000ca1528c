// From the logits of the base cells to the loss and its gradient, in one launch of four phases (tasks.cuh):
//   0  rows of both networks' region logits, normalised;
//   1  class: each cell's KL and gradient; spatial, sample: each row's KL and statistics;
//   2  spatial, sample: the gradient;
//   3  the gradient folded onto the base cells; the loss, reduced in a fixed order.
// Between the phases everything goes through global memory that other blocks write: no pointer here may be __restrict__
// or read through the read-only cache.
#pragma once

#include "class_gram.cuh"
#include "points_gram.cuh"
#include "logits.cuh"
#include "tasks.cuh"

namespace icd::cuda {

// kTile: points a tile holds; 0 is the class form.
template <typename T, int kTile>
struct FormShared {
  PointsShared<T, kTile> points;
};

template <typename T>
struct FormShared<T, 0> {
  ClassShared<T> cell;
};

template <typename T, int kTile>
struct GramShared {
  FormShared<T, kTile> form;
  double parts[kWarps];
  int ticket;
};

// A region's row of either network, as it comes and normalised.
template <typename T>
ICD_DEVICE void gram_row(const GramArguments<T>& arguments, int64_t task) {
  const int64_t row = task * kWarps + warp(), rows = rows_of(arguments.scales, arguments.batch);
  if (row >= 2 * rows) return;
  const int net = row >= rows;
  const int64_t regions = arguments.scales.cells, image = row % rows / regions, classes = arguments.classes;
  T* out = arguments.logits + row * classes;
  region_row(arguments.sources[net], arguments.scales, image, row % regions, classes, out);
  if (arguments.raw != nullptr) {
    for (int64_t k = lane(); k < classes; k += kWarp) arguments.raw[row * classes + k] = out[k];
  }
  const T statistic = normalize_row(arguments.normalization, classes, out);
  if (net == 0 && lane() == 0) arguments.statistics[row] = statistic;
}

// One cell of the class form; task is its row among the B·N.
template <typename T>
ICD_DEVICE void gram_cell(const GramArguments<T>& arguments, int64_t row, ClassShared<T>& shared) {
  const int64_t classes = arguments.classes, rows = rows_of(arguments.scales, arguments.batch);
  const int scale_index = cell_of(arguments.scales, row % arguments.scales.cells, 1, 1).scale_index;
  const T* student = arguments.logits + row * classes;
  const T* teacher = student + rows * classes;
  T* grad = arguments.grad == nullptr ? nullptr : arguments.grad + row * classes;
  if (arguments.cell_weights[scale_index] == 0) {
    if (threadIdx.x == 0) arguments.losses[row] = T(0);
    for (int64_t k = threadIdx.x; grad != nullptr && k < classes; k += kThreads) grad[k] = T(0);
    return;
  }
  T* scratch = arguments.class_scratch + blockIdx.x * classes * kClassScratch<T>;
  const double loss = class_cell(arguments, student, teacher, scratch, grad, shared);
  if (threadIdx.x == 0) arguments.losses[row] = static_cast<T>(loss);
  if (grad == nullptr || warp() != 0) return;
  const T scale = row_weight(arguments, row, scale_index) / arguments.temperature;
  normalize_row_backward(arguments.normalization, student, arguments.statistics[row], classes, scale, grad);
}

template <typename T>
ICD_DEVICE void fold_gradient(const GramArguments<T>& arguments, int64_t task) {
  const int64_t finest = arguments.finest, cells = finest * finest, classes = arguments.classes;
  const int64_t row = task * kWarps + warp();
  if (row >= arguments.batch * cells) return;
  const LogitSource grad = {
      arguments.grad, kDtype<T>, arguments.scales.cells * classes, classes, 1, 1, 0, nullptr, kDtype<T>, 0, 0};
  fold_row(grad, arguments.scales, finest, row / cells, row % cells, classes, arguments.folded + row * classes);
}

// Every image's loss, and their mean or sum.
template <typename T>
ICD_DEVICE void reduce_losses(const GramArguments<T>& arguments, double* parts) {
  double total = 0;
  for (int64_t image = threadIdx.x; image < arguments.batch; image += kThreads) {
    const T* losses = arguments.losses + image * arguments.scales.cells;
    double loss = 0;
    for (int s = 0; s < arguments.scales.count; ++s) {
      const int64_t cells = static_cast<int64_t>(arguments.scales.sizes[s]) * arguments.scales.sizes[s];
      for (int64_t n = 0; n < cells; ++n) loss += arguments.cell_weights[s] * static_cast<double>(*losses++);
    }
    if (arguments.per_image) arguments.loss[image] = static_cast<T>(loss);
    total += loss;
  }
  total = sum_block(total, parts);
  if (arguments.per_image || threadIdx.x != 0) return;
  *arguments.loss = static_cast<T>(arguments.mean ? total / static_cast<double>(arguments.batch) : total);
}

template <typename T, int kTile>
ICD_DEVICE void gram_task(const GramArguments<T>& arguments, const Task& task, GramShared<T, kTile>& shared) {
  if (task.phase == 0) return gram_row(arguments, task.number);
  if (task.phase == 3) {
    const bool last = arguments.loss != nullptr && task.number == arguments.tasks[3] - 1;
    return last ? reduce_losses(arguments, shared.parts) : fold_gradient(arguments, task.number);
  }
  if constexpr (kTile == 0) {
    gram_cell(arguments, task.number, shared.form.cell);
  } else if (task.phase == 1) {
    point_rows<T, kTile>(arguments, task.number, shared.form.points);
  } else {
    point_gradients<T, kTile>(arguments, task.number, shared.form.points);
  }
}

template <typename T, int kTile>
ICD_DEVICE void gram_block(const GramArguments<T>& arguments, GramShared<T, kTile>& shared) {
  for (;;) {
    const Task task = draw_task(arguments.counters, arguments.tasks, &shared.ticket);
    if (task.phase == kPhases) return;
    wait_for_phases(arguments.counters, arguments.tasks, task.phase);
    gram_task<T, kTile>(arguments, task, shared);
    finish_task(arguments.counters, task.phase);
  }
}

}  // namespace icd::cuda
