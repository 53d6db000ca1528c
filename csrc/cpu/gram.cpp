// From local logits to the loss and its gradient by them: normalisation, Gram matrices, reduction.
#include <cstring>

#include "dispatch.h"
#include "stages.h"

namespace icd::cpu {
namespace {

// In place; returns the statistics (B·N) that the derivative needs.
template <typename T>
std::vector<T> normalize(const Tensor& logits, const Normalization& by) {
  if (by.is_identity()) return {};
  std::vector<T> statistics(logits.size(0) * logits.size(1));
  in_parallel(statistics.size(), logits.size(2) * 4, [&](int64_t begin, int64_t end) {
    logit_kernels_for<T>().normalize(by, written<T>(logits), logits.size(2), statistics.data(), begin, end);
  });
  return statistics;
}

template <typename T>
void normalize_backward(
    const Tensor& normalized, const std::vector<T>& statistics, const Normalization& by, const Tensor& grad) {
  if (by.is_identity()) return;
  in_parallel(statistics.size(), grad.size(2) * 4, [&](int64_t begin, int64_t end) {
    logit_kernels_for<T>().normalize_backward(
        by, data_of<T>(normalized), statistics.data(), grad.size(2), written<T>(grad), begin, end);
  });
}

// What the Gram stage reads and writes, each over all regions.
template <typename T>
struct Grams {
  const Tensor &student, &teacher;  // [B, N, K], normalised
  const GramOptions& options;
  const std::vector<T>& row_weights;  // [B, N]
  std::vector<T>& losses;             // [B, N], row KLs
  const Tensor* grad;                 // [B, N, K], or null

  T temperature() const { return static_cast<T>(options.temperature); }
};

// Row KLs of the class Gram, and the gradient by the normalised student logits.
template <typename T>
void class_gram(const Grams<T>& grams) {
  const int64_t classes = grams.student.size(2);
  const ClassSum sum = class_sum();
  const LogitKernels<T>& kernel = logit_kernels_for<T>();
  in_parallel(grams.losses.size(), classes * classes * 16, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> scratch(new T[kernel.class_scratch(classes)]);
    kernel.class_gram(
        sum, data_of<T>(grams.student), data_of<T>(grams.teacher), classes, grams.temperature(),
        grams.row_weights.data(), grams.losses.data(), grams.grad == nullptr ? nullptr : written<T>(*grams.grad),
        scratch.get(), begin, end);
  });
}

// Points r .. r + count of groups g .. g + groups, as [groups, count, K].
Tensor part_of(const Tensor& rows, const Points& points, int64_t g, int64_t groups, int64_t r, int64_t count) {
  const int64_t classes = rows.size(2);
  return view(
      rows, {groups, count, classes}, {points.group_step * classes, points.point_step * classes, 1},
      points.row(g, r) * classes);
}

Tensor batched_product(const Tensor& left, const Tensor& right) {
  const Tensor out = empty({left.size(0), left.size(1), right.size(2)}, left.scalar_type(), left);
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(out.get(), left.get(), right.get()));
  return out;
}

void add_product(const Tensor& to, const Tensor& left, const Tensor& right) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_baddbmm_out(to.get(), to.get(), left.get(), right.get(), 1, 1));
}

// Row KLs of Gram entries [groups, rows, points] of both networks; the student's become D (kernels.h).
template <typename T>
void compare_rows(
    const Grams<T>& grams, const Points& points, int64_t g, int64_t r, const Tensor& student_gram,
    const Tensor& teacher_gram) {
  const int64_t rows = student_gram.size(1), count = student_gram.size(0) * rows;
  std::vector<T> weights(count), losses(count);
  for (int64_t i = 0; i < count; ++i) weights[i] = grams.row_weights[points.row(g + i / rows, r + i % rows)];
  in_parallel(count, points.count * 32, [&](int64_t begin, int64_t end) {
    logit_kernels_for<T>().gram_rows(
        written<T>(student_gram), written<T>(teacher_gram), points.count, grams.temperature(), weights.data(),
        losses.data(), begin, end);
  });
  for (int64_t i = 0; i < count; ++i) grams.losses[points.row(g + i / rows, r + i % rows)] = losses[i];
}

// Gram entries held at a time, for each network.
constexpr int64_t kGramBudget = 1 << 18;

// Groups of few points, which are divided among threads.
template <typename T>
void few_points_gram(const Grams<T>& grams, const Points& points) {
  const int64_t classes = grams.student.size(2);
  const LogitKernels<T>& kernel = logit_kernels_for<T>();
  in_parallel(points.groups, 2 * points.count * points.count * classes, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> scratch(new T[kernel.points_scratch(points.count, classes)]);
    kernel.points_gram(
        data_of<T>(grams.student), data_of<T>(grams.teacher), points, classes, grams.temperature(),
        grams.row_weights.data(), grams.losses.data(), grams.grad == nullptr ? nullptr : written<T>(*grams.grad),
        scratch.get(), begin, end);
  });
}

// Groups of many: whole groups or blocks of rows at a time, so that the Gram matrices are never all stored.
template <typename T>
void many_points_gram(const Grams<T>& grams, const Points& points) {
  const int64_t all = points.count;
  const int64_t row_step = std::min(all, std::max<int64_t>(1, kGramBudget / all));
  const int64_t group_step = std::min(points.groups, std::max<int64_t>(1, kGramBudget / (row_step * all)));
  for (int64_t g = 0; g < points.groups; g += group_step) {
    const int64_t groups = std::min(group_step, points.groups - g);
    const auto part = [&](const Tensor& tensor, int64_t r, int64_t rows) {
      return part_of(tensor, points, g, groups, r, rows);
    };
    const Tensor student = part(grams.student, 0, all), teacher = part(grams.teacher, 0, all);
    for (int64_t r = 0; r < all; r += row_step) {
      const int64_t rows = std::min(row_step, all - r);
      const Tensor student_rows = part(grams.student, r, rows);
      const Tensor student_gram = batched_product(student_rows, swapped(student));
      const Tensor teacher_gram = batched_product(part(grams.teacher, r, rows), swapped(teacher));
      compare_rows(grams, points, g, r, student_gram, teacher_gram);
      if (grams.grad == nullptr) continue;
      add_product(part(*grams.grad, r, rows), student_gram, student);
      add_product(part(*grams.grad, 0, all), swapped(student_gram), student_rows);
    }
  }
}

template <typename T>
void points_gram(const Grams<T>& grams, const Points& points) {
  if (points.groups * points.count == 0) return;
  if (points.count <= kFewPoints) return few_points_gram(grams, points);
  many_points_gram(grams, points);
}

// Each scale's points: its cells within an image (spatial), or the images within a cell (sample).
template <typename T>
void scales_gram(const Grams<T>& grams) {
  const int64_t batch = grams.student.size(0), regions = grams.student.size(1);
  int64_t first = 0;
  for (size_t s = 0; s < grams.options.scales.size(); ++s) {
    const int64_t cells = grams.options.scales[s] * grams.options.scales[s];
    if (grams.options.cell_weights[s] > 0) {
      const bool sample = grams.options.gram == Gram::sample;
      points_gram(
          grams, {.first = first,
                  .groups = sample ? cells : batch,
                  .count = sample ? batch : cells,
                  .group_step = sample ? 1 : regions,
                  .point_step = sample ? regions : 1});
    }
    first += cells;
  }
}

// [N]: what each region's rows weigh in their image's loss.
template <typename T>
std::vector<T> region_weights(const GramOptions& options) {
  std::vector<T> weights;
  for (size_t s = 0; s < options.scales.size(); ++s) {
    weights.insert(weights.end(), options.scales[s] * options.scales[s], static_cast<T>(options.cell_weights[s]));
  }
  return weights;
}

// The loss of every image from logits (B, N, K), which are overwritten; in `grad`, unless that is null,
// Σ_b image_weights[b] · dl_b/dz.
template <typename T>
std::vector<double> image_losses(
    const Tensor& student, const Tensor& teacher, const GramOptions& options, const std::vector<T>& image_weights,
    const Tensor* grad) {
  const int64_t batch = student.size(0), regions = student.size(1);
  const std::vector<T> statistics = normalize<T>(student, options.normalization);
  normalize<T>(teacher, options.normalization);
  const std::vector<T> weights = region_weights<T>(options);
  std::vector<T> row_weights(batch * regions), losses(batch * regions);
  for (int64_t row = 0; row < batch * regions; ++row) {
    row_weights[row] = image_weights[row / regions] * weights[row % regions];
  }
  const Grams<T> grams = {student, teacher, options, row_weights, losses, grad};
  if (options.gram == Gram::class_) {
    class_gram(grams);
  } else {
    if (grad != nullptr) std::memset(grad->data_ptr(), 0, grad->numel() * sizeof(T));
    scales_gram(grams);
  }
  if (grad != nullptr) normalize_backward(student, statistics, options.normalization, *grad);
  std::vector<double> totals(batch);
  for (int64_t row = 0; row < batch * regions; ++row) {
    totals[row / regions] += static_cast<double>(losses[row]) * static_cast<double>(weights[row % regions]);
  }
  return totals;
}

template <typename T>
Tensor reduced(const std::vector<double>& losses, Reduction reduction, const Tensor& like) {
  const auto batch = static_cast<int64_t>(losses.size());
  if (reduction == Reduction::none) {
    const Tensor out = empty({batch}, scalar_type_of<T>(), like);
    std::copy(losses.begin(), losses.end(), written<T>(out));
    return out;
  }
  double total = 0;
  for (const double loss : losses) total += loss;
  const Tensor out = empty({}, scalar_type_of<T>(), like);
  *written<T>(out) = static_cast<T>(reduction == Reduction::mean ? total / static_cast<double>(batch) : total);
  return out;
}

// (B, K, N) in any layout and dtype -> a fresh (B, N, K) in the dtype of the math.
template <typename T>
Tensor own_logits(const Tensor& logits) {
  Tensor own = empty({logits.size(0), logits.size(2), logits.size(1)}, scalar_type_of<T>(), logits);
  return torch::stable::copy_(own, swapped(logits));
}

template <typename T>
void copy_rows(T* to, const Tensor& from) {
  std::memcpy(to, from.const_data_ptr(), from.numel() * sizeof(T));
}

template <typename T>
Tensor fold_regions(const Stages::Call& call, const Tensor& grad, const Regions& regions) {
  return regions.folded ? Stages::fold<T>(call, swapped(grad), regions) : grad;
}

}  // namespace

template <typename T>
Stages::Logits<T> Stages::given(Call&, const Tensor& student, const Tensor& teacher) {
  return {.student = own_logits<T>(student), .teacher = own_logits<T>(teacher)};
}

template <typename T>
LossState Stages::gram(
    const Call& call, const Logits<T>& logits, const GramOptions& options, const Regions& regions, bool save) {
  const Tensor &student = logits.student, &teacher = *logits.teacher;
  const int64_t batch = student.size(0);
  const bool keep = save && options.keeps_logits();
  Tensor saved = empty({0}, student.scalar_type(), student);
  if (keep) {
    saved = empty({2, batch, student.size(1), student.size(2)}, student.scalar_type(), student);
    copy_rows(written<T>(saved), student);
    copy_rows(written<T>(saved) + student.numel(), teacher);
  } else if (save) {
    saved = empty(student.sizes(), student.scalar_type(), student);
  }
  // How much of each image's loss the reduced loss holds.
  const double share = options.reduction == Reduction::mean ? 1.0 / static_cast<double>(batch) : 1.0;
  const std::vector<T> image_weights(batch, static_cast<T>(share));
  const std::vector<double> losses =
      image_losses<T>(student, teacher, options, image_weights, save && !keep ? &saved : nullptr);
  if (save && !keep) saved = fold_regions<T>(call, saved, regions);
  return {.loss = reduced<T>(losses, options.reduction, student), .saved = saved};
}

template <typename T>
Tensor Stages::gram_backward(
    Call& call, const Tensor& saved, const Tensor& upstream, const GramOptions& options,
    const Regions& regions) {
  const int64_t batch = saved.size(1), cells = saved.size(2), classes = saved.size(3);
  const Tensor student = empty({batch, cells, classes}, saved.scalar_type(), saved);
  const Tensor teacher = empty(student.sizes(), saved.scalar_type(), saved);
  const Tensor grad = empty(student.sizes(), saved.scalar_type(), saved);
  std::memcpy(student.data_ptr(), saved.data_ptr(), student.numel() * sizeof(T));
  std::memcpy(teacher.data_ptr(), written<T>(saved) + student.numel(), student.numel() * sizeof(T));
  const Tensor weights = torch::stable::contiguous(to_dtype(upstream, saved.scalar_type()));
  const std::vector<T> image_weights(data_of<T>(weights), data_of<T>(weights) + batch);
  image_losses<T>(student, teacher, options, image_weights, &grad);
  return fold_regions<T>(call, grad, regions);
}

#define ICD_STAGES(T)                                                                                              \
  template Stages::Logits<T> Stages::given<T>(Call&, const Tensor&, const Tensor&);                                \
  template LossState Stages::gram<T>(                                                                              \
      const Call&, const Logits<T>&, const GramOptions&, const Regions&, bool);                                    \
  template Tensor Stages::gram_backward<T>(                                                                        \
      Call&, const Tensor&, const Tensor&, const GramOptions&, const Regions&);

ICD_STAGES(float)
ICD_STAGES(double)

}  // namespace icd::cpu
