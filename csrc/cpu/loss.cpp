#include "loss.h"

#include <ATen/Parallel.h>

#include <memory>

#include "dispatch.h"

namespace icd::cpu {
namespace {

// In place; returns the statistics (B·N,) that the derivative needs.
Tensor normalize(Tensor& logits, Normalize mode) {
  Tensor statistics = at::empty({logits.size(0) * logits.size(1)}, logits.options());
  if (mode == Normalize::none) return statistics;
  dispatch_math(logits.scalar_type(), [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, statistics.numel(), grain(logits.size(2) * 4), [&](int64_t begin, int64_t end) {
      logit_kernels_for<T>().normalize(
          mode, logits.data_ptr<T>(), logits.size(2), statistics.data_ptr<T>(), begin, end);
    });
  });
  return statistics;
}

void normalize_backward(const Tensor& normalized, const Tensor& statistics, Normalize mode, Tensor& grad) {
  if (mode == Normalize::none) return;
  dispatch_math(grad.scalar_type(), [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, statistics.numel(), grain(grad.size(2) * 4), [&](int64_t begin, int64_t end) {
      logit_kernels_for<T>().normalize_backward(
          mode, normalized.data_ptr<T>(), statistics.data_ptr<T>(), grad.size(2), grad.data_ptr<T>(), begin, end);
    });
  });
}

// Row KLs (B, N) of the class Gram, and the gradient by the normalised student logits.
void class_gram(
    const Tensor& student, const Tensor& teacher, double temperature, const Tensor& row_weights, Tensor& losses,
    Tensor& grad) {
  const int64_t classes = student.size(2);
  const ClassSum sum = class_sum();
  dispatch_math(student.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const LogitKernels<T>& kernel = logit_kernels_for<T>();
    at::parallel_for(0, losses.numel(), grain(classes * classes * 16), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.class_scratch(classes)]);
      kernel.class_gram(
          sum, student.data_ptr<T>(), teacher.data_ptr<T>(), classes, static_cast<T>(temperature),
          row_weights.data_ptr<T>(), losses.data_ptr<T>(), grad.defined() ? grad.data_ptr<T>() : nullptr,
          scratch.get(), begin, end);
    });
  });
}

// Gram entries held at a time, for each network.
constexpr int64_t kGramBudget = 1 << 18;

// Groups of points whose Gram matrices are compared: student, teacher and grad are [G, P, K], weights and losses [G, P].
// Whole groups or blocks of rows at a time, so that the Gram matrices are never all stored.
void points_gram(
    const Tensor& student, const Tensor& teacher, double temperature, const Tensor& row_weights, Tensor losses,
    const Tensor& grad) {
  const int64_t groups = student.size(0), points = student.size(1);
  if (student.numel() == 0) return;
  const int64_t row_step = std::min(points, std::max<int64_t>(1, kGramBudget / points));
  const int64_t group_step = std::min(groups, std::max<int64_t>(1, kGramBudget / (row_step * points)));
  for (int64_t g = 0; g < groups; g += group_step) {
    const int64_t group_count = std::min(group_step, groups - g);
    const Tensor s = student.narrow(0, g, group_count), t = teacher.narrow(0, g, group_count);
    for (int64_t r = 0; r < points; r += row_step) {
      const int64_t rows = std::min(row_step, points - r);
      const Tensor s_rows = s.narrow(1, r, rows);
      Tensor student_gram = at::bmm(s_rows, s.transpose(1, 2));
      Tensor teacher_gram = at::bmm(t.narrow(1, r, rows), t.transpose(1, 2));
      const Tensor weights = row_weights.narrow(0, g, group_count).narrow(1, r, rows).contiguous();
      Tensor row_losses = at::empty_like(weights);
      dispatch_math(student.scalar_type(), [&](auto math) {
        using T = decltype(math);
        at::parallel_for(0, row_losses.numel(), grain(points * 32), [&](int64_t begin, int64_t end) {
          logit_kernels_for<T>().gram_rows(
              student_gram.data_ptr<T>(), teacher_gram.data_ptr<T>(), points, static_cast<T>(temperature),
              weights.data_ptr<T>(), row_losses.data_ptr<T>(), begin, end);
        });
      });
      losses.narrow(0, g, group_count).narrow(1, r, rows).copy_(row_losses);
      if (!grad.defined()) continue;
      grad.narrow(0, g, group_count).narrow(1, r, rows).baddbmm_(student_gram, s);
      grad.narrow(0, g, group_count).baddbmm_(student_gram.transpose(1, 2), s_rows);
    }
  }
}

// Each scale's points: its cells within an image (spatial), or the images within a cell (sample).
void scales_gram(
    const Tensor& student, const Tensor& teacher, const GramOptions& options, const Tensor& row_weights,
    Tensor& losses, Tensor& grad) {
  int64_t first = 0;
  for (size_t s = 0; s < options.scales.size(); ++s) {
    const int64_t cells = options.scales[s] * options.scales[s];
    const auto points = [&](const Tensor& tensor) {
      const Tensor part = tensor.narrow(1, first, cells);
      return options.gram == Gram::sample ? part.transpose(0, 1) : part;
    };
    if (options.scale_weights[s] > 0) {
      points_gram(
          points(student), points(teacher), options.temperature, points(row_weights), points(losses),
          grad.defined() ? points(grad) : grad);
    }
    first += cells;
  }
}

struct GramLoss {
  Tensor per_sample;  // [B]
  Tensor grad;        // [B, N, K] by the raw student logits, or undefined
};

// [B, N] of image_weights[b] · cell_weights[n]
Tensor weigh_rows(const Tensor& image_weights, const Tensor& cell_weights) {
  return image_weights.unsqueeze(1) * cell_weights.unsqueeze(0);
}

// The loss of every image from logits (B, N, K), which are overwritten. grad: Σ_b image_weights[b] · dl_b/dz.
GramLoss gram_loss(
    Tensor student, Tensor teacher, const GramOptions& options, const Tensor& image_weights, bool with_grad) {
  const Tensor statistics = normalize(student, options.normalize);
  normalize(teacher, options.normalize);
  const Tensor cell_weights = at::tensor(options.cell_weights(), student.options());
  const Tensor row_weights = weigh_rows(image_weights, cell_weights);
  Tensor losses = at::zeros({student.size(0), student.size(1)}, student.options());
  Tensor grad;
  if (options.gram == Gram::class_) {
    if (with_grad) grad = at::empty_like(student);
    class_gram(student, teacher, options.temperature, row_weights, losses, grad);
  } else {
    if (with_grad) grad = at::zeros_like(student);
    scales_gram(student, teacher, options, row_weights, losses, grad);
  }
  if (with_grad) normalize_backward(student, statistics, options.normalize, grad);
  return {at::mv(losses, cell_weights), grad};
}

// How much of each image's loss the reduced loss holds.
Tensor reduction_weights(const GramOptions& options, int64_t batch, const at::TensorOptions& like) {
  return at::full({batch}, options.reduction == Reduction::mean ? 1.0 / static_cast<double>(batch) : 1.0, like);
}

Tensor reduce(const Tensor& per_sample, Reduction reduction) {
  if (reduction == Reduction::mean) return per_sample.mean();
  return reduction == Reduction::sum ? per_sample.sum() : per_sample;
}

}  // namespace

ForwardState gram_forward(const Tensor& student, const Tensor& teacher, const GramOptions& options, bool save) {
  const bool keep = save && options.keeps_logits();
  Tensor saved = keep ? at::stack({student, teacher}) : at::empty({0}, student.options());
  const Tensor weights = reduction_weights(options, student.size(0), student.options());
  const GramLoss result = gram_loss(student, teacher, options, weights, save && !keep);
  return {reduce(result.per_sample, options.reduction), result.grad.defined() ? result.grad : saved};
}

Tensor gram_backward(const Tensor& grad_loss, const Tensor& saved, const GramOptions& options) {
  const Tensor upstream = grad_loss.to(saved.scalar_type());
  if (options.keeps_logits()) {
    return gram_loss(saved[0].clone(), saved[1].clone(), options, upstream, true).grad;
  }
  return saved * (options.reduction == Reduction::none ? upstream.view({-1, 1, 1}) : upstream);
}

}  // namespace icd::cpu
