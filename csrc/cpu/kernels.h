// The CPU kernels: raw pointers, no tensors, each over a range [begin, end) of independent work items, so that the
// launcher decides about threads. Compiled once for each instruction set; `kernels()` picks the best the machine has.
//
// Sizes: B images, C channels, H x W pixels, K classes, N regions. T is the dtype of the math, I and O of the maps.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cstdint>

#include "../common/class_sum.h"
#include "../common/normalize.h"

namespace icd::cpu {

// A feature map (B, C, H, W) in any layout.
template <typename I>
struct FeatureMap {
  I* data;
  int64_t batch, channels, height, width;
  int64_t batch_stride, channel_stride, height_stride, width_stride;
};

// The scales of a grid of cells, cells numbered scale by scale, row-major.
struct Scales {
  const int64_t* sizes;
  int64_t count;
  int64_t cells;
};

// How many work items `pool` and `unpool` have, and how much scratch (elements of T) one thread needs.
template <typename I, typename T>
struct MapKernels {
  int64_t (*items)(const FeatureMap<I>& map);
  int64_t (*scratch)(const FeatureMap<I>& map, const Scales& scales);
  // pooled: [B, cells, C]
  void (*pool)(const FeatureMap<I>& map, const Scales& scales, T* pooled, T* scratch, int64_t begin, int64_t end);
  // Each pixel collects grad(cell)/|cell| from every cell that covers it; every pixel of `map` is written.
  void (*unpool)(
      const FeatureMap<I>& map, const Scales& scales, const T* grad_pooled, T* scratch, int64_t begin, int64_t end);
};

// The factors of a row loss's five parts (icd_kernels/objectives/row_method.py).
struct RowFactors {
  double whole, binary, others, entropy, target;
};

// Local logits (B, K, N) in any layout.
template <typename T>
struct LogitRows {
  const T* data;
  int64_t classes, regions;
  int64_t image_stride, class_stride, region_stride;
};

// Groups of points whose Gram matrices are compared, among the B·N rows of logits.
struct Points {
  int64_t first, groups, count, group_step, point_step;

  int64_t row(int64_t group, int64_t point) const { return first + group * group_step + point * point_step; }
};

// Points of a group up to which `points_gram` takes it: its logits and matrices stay in the second-level cache.
constexpr int64_t kFewPoints = 64;

template <typename T>
struct LogitKernels {
  // Items are images. fine: [B, finest², K], logits: [B, N, K]; a coarse cell is the mean of the fine ones it covers.
  void (*expand)(const T* fine, int64_t finest, const Scales& scales, int64_t classes, T* logits, int64_t, int64_t);
  // The transpose of expand: gathers every scale's gradient onto the fine cells.
  void (*fold)(const T* grad, int64_t finest, const Scales& scales, int64_t classes, T* grad_fine, int64_t, int64_t);

  // Items are rows of K logits. In place; statistics: [rows], spread · the norm, or 1.
  void (*normalize)(const Normalization& by, T* rows, int64_t classes, T* statistics, int64_t begin, int64_t end);
  // In place on grads, given the normalised rows.
  void (*normalize_backward)(
      const Normalization& by, const T* normalized, const T* statistics, int64_t classes, T* grads, int64_t begin, int64_t end);

  // Items are rows of K normalised logits. losses[row]: the KL summed over the K rows of the class Gram z z^T.
  // With grads: grads[row] = row_weights[row] · d losses[row] / d student row. A row of weight 0 is not computed: its
  // loss and gradient are 0. scratch: class_scratch(K) elements.
  int64_t (*class_scratch)(int64_t classes);
  void (*class_gram)(
      ClassSum sum,
      const T* student,
      const T* teacher,
      int64_t classes,
      T temperature,
      const T* row_weights,
      T* losses,
      T* grads,
      T* scratch,
      int64_t begin,
      int64_t end);

  // Items are groups of at most kFewPoints points. losses: [B·N], the rows' KL. With grads: grads[row] = the gradient by the
  // student's row of Σ row_weights · losses of its group. scratch: points_scratch(points, K) elements.
  int64_t (*points_scratch)(int64_t points, int64_t classes);
  void (*points_gram)(
      const T* student,
      const T* teacher,
      const Points& points,
      int64_t classes,
      T temperature,
      const T* row_weights,
      T* losses,
      T* grads,
      T* scratch,
      int64_t begin,
      int64_t end);

  // Items are rows of `points` Gram entries of both networks. losses[row]: the row's KL.
  // student_gram becomes D = softmax(student) - softmax(teacher), times row_weights[row]/temperature.
  void (*gram_rows)(
      T* student_gram,
      T* teacher_gram,
      int64_t points,
      T temperature,
      const T* row_weights,
      T* losses,
      int64_t begin,
      int64_t end);

  // Items are images. losses: [B, N]; grads: [B, N, K], or null. scratch: row_scratch(K) elements. A region where the
  // teacher is right on the whole image (region 0) and wrong there, or the reverse, counts complementary_weight times.
  int64_t (*row_scratch)(int64_t classes);
  void (*row_losses)(
      const RowFactors& factors,
      T temperature,
      T complementary_weight,
      const LogitRows<T>& student,
      const LogitRows<T>& teacher,
      const int64_t* targets,
      T* losses,
      T* grads,
      T* scratch,
      int64_t begin,
      int64_t end);
};

struct Kernels {
  const char* instruction_set;
  MapKernels<float, float> map_float;
  MapKernels<c10::BFloat16, float> map_bfloat16;
  MapKernels<c10::Half, float> map_half;
  MapKernels<double, double> map_double;
  MapKernels<float, double> map_float_in_double;
  MapKernels<c10::BFloat16, double> map_bfloat16_in_double;
  MapKernels<c10::Half, double> map_half_in_double;
  LogitKernels<float> logits_float;
  LogitKernels<double> logits_double;
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

// The best of them this machine runs; ICD_KERNELS_ISA=baseline|avx2|avx512 lowers the choice (for tests).
const Kernels& kernels();

}  // namespace icd::cpu
