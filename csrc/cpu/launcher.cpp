// The CPU operators: check, allocate, divide the work among threads, and call the kernels. Matrix products go through
// ATen to the library PyTorch links.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <tuple>

#include "../common/options.h"
#include "kernels.h"

namespace icd::cpu {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Nothing inside an operator is recorded by autograd or recast by autocast.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Work items for one thread so that a thread has at least about this many multiply-adds.
constexpr int64_t kGrainWork = 1 << 15;

int64_t grain(int64_t work_per_item) { return std::max<int64_t>(1, kGrainWork / std::max<int64_t>(1, work_per_item)); }

template <typename I, typename T>
const MapKernels<I, T>& map_kernels_for() {
  const Kernels& all = kernels();
  if constexpr (std::is_same_v<T, double>) {
    if constexpr (std::is_same_v<I, double>) return all.map_double;
    else if constexpr (std::is_same_v<I, float>) return all.map_float_in_double;
    else if constexpr (std::is_same_v<I, at::Half>) return all.map_half_in_double;
    else return all.map_bfloat16_in_double;
  } else {
    if constexpr (std::is_same_v<I, float>) return all.map_float;
    else if constexpr (std::is_same_v<I, at::Half>) return all.map_half;
    else return all.map_bfloat16;
  }
}

template <typename T>
const LogitKernels<T>& logit_kernels_for() {
  if constexpr (std::is_same_v<T, double>) return kernels().logits_double;
  else return kernels().logits_float;
}

// Calls f(T()) with the C++ type of the math.
template <typename F>
void dispatch_math(at::ScalarType dtype, F f) {
  if (dtype == at::kDouble) f(double());
  else f(float());
}

// Calls f(I(), T()) with the C++ types of a map and of the math.
template <typename F>
void dispatch_map(at::ScalarType map, at::ScalarType math, F f) {
  dispatch_math(math, [&](auto t) {
    using T = decltype(t);
    if (map == at::kFloat) f(float(), t);
    else if (map == at::kBFloat16) f(at::BFloat16(), t);
    else if (map == at::kHalf) f(at::Half(), t);
    else if constexpr (std::is_same_v<T, double>) f(double(), t);
    else TORCH_CHECK_TYPE(false, "features of ", map, " need math in float64");
  });
}

at::ScalarType math_dtype(std::initializer_list<const Tensor*> tensors) {
  at::ScalarType dtype = at::kFloat;
  for (const Tensor* tensor : tensors) {
    if (tensor == nullptr) continue;
    const at::ScalarType type = tensor->scalar_type();
    TORCH_CHECK_TYPE(
        type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
        "tensors must be float64, float32, bfloat16 or float16, got ", type);
    if (type == at::kDouble) dtype = at::kDouble;
  }
  return dtype;
}

const Tensor* pointer(const Optional& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

void check_network(const Tensor& features, const Tensor& weight, const Optional& bias) {
  TORCH_CHECK_VALUE(features.dim() == 4, "features must have shape (B, C, H, W), got ", features.sizes());
  TORCH_CHECK_VALUE(
      weight.dim() == 2 && weight.size(1) == features.size(1), "weight must have shape (K, ", features.size(1),
      "), got ", weight.sizes());
  TORCH_CHECK_VALUE(
      !bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "bias must have shape (",
      weight.size(0), ",)");
}

template <typename I>
FeatureMap<I> map_of(const Tensor& map) {
  return {
      map.data_ptr<I>(), map.size(0),   map.size(1),   map.size(2),  map.size(3),
      map.stride(0),     map.stride(1), map.stride(2), map.stride(3)};
}

Scales scales_of(const std::vector<int64_t>& scales) {
  return {scales.data(), static_cast<int64_t>(scales.size()), cell_count(scales)};
}

// (B, C, H, W) -> (B, cells, C), in the dtype of the math.
Tensor pool(const Tensor& features, const Regions& regions, at::ScalarType dtype) {
  const Scales scales = scales_of(regions.base);
  Tensor pooled = at::empty({features.size(0), scales.cells, features.size(1)}, features.options().dtype(dtype));
  dispatch_map(features.scalar_type(), dtype, [&](auto i, auto t) {
    using I = decltype(i);
    using T = decltype(t);
    const MapKernels<I, T>& kernel = map_kernels_for<I, T>();
    const FeatureMap<I> map = map_of<I>(features);
    T* out = pooled.data_ptr<T>();
    at::parallel_for(0, kernel.items(map), grain(map.height * map.width * 16), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.scratch(map, scales)]);
      kernel.pool(map, scales, out, scratch.get(), begin, end);
    });
  });
  return pooled;
}

// Asks for huge pages for a large fresh tensor: its first touch otherwise costs a page fault for every 4 KiB, several
// times the work of filling it.
void expect_large_pages(const Tensor& fresh) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 1 << 21;
  const auto start = (reinterpret_cast<uintptr_t>(fresh.data_ptr()) + kHugePage - 1) / kHugePage * kHugePage;
  const auto stop = (reinterpret_cast<uintptr_t>(fresh.data_ptr()) + fresh.nbytes()) / kHugePage * kHugePage;
  if (stop > start) madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);
#endif
}

// (B, cells, C) -> the gradient by the features, in their layout and dtype.
Tensor unpool(
    const Tensor& grad_pooled, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype,
    const Regions& regions) {
  const Scales scales = scales_of(regions.base);
  Tensor grad = at::empty_strided(size, stride, grad_pooled.options().dtype(dtype));
  expect_large_pages(grad);
  dispatch_map(dtype, grad_pooled.scalar_type(), [&](auto o, auto t) {
    using O = decltype(o);
    using T = decltype(t);
    const MapKernels<O, T>& kernel = map_kernels_for<O, T>();
    const FeatureMap<O> map = map_of<O>(grad);
    const T* in = grad_pooled.data_ptr<T>();
    at::parallel_for(0, kernel.items(map), grain(map.height * map.width * 16), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.scratch(map, scales)]);
      kernel.unpool(map, scales, in, scratch.get(), begin, end);
    });
  });
  return grad;
}

// Between the fine cells (B, finest², K) and all regions (B, N, K): a copy where the regions are not folded.
Tensor expand(const Tensor& fine, const Regions& regions) {
  if (!regions.folded) return fine;
  const int64_t classes = fine.size(2), finest = regions.base[0];
  const Scales scales = scales_of(regions.scales);
  Tensor logits = at::empty({fine.size(0), scales.cells, classes}, fine.options());
  dispatch_math(fine.scalar_type(), [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, fine.size(0), grain(scales.cells * classes), [&](int64_t begin, int64_t end) {
      logit_kernels_for<T>().expand(
          fine.data_ptr<T>(), finest, scales, classes, logits.data_ptr<T>(), begin, end);
    });
  });
  return logits;
}

Tensor fold(const Tensor& grad, const Regions& regions) {
  if (!regions.folded) return grad;
  const int64_t classes = grad.size(2), finest = regions.base[0];
  const Scales scales = scales_of(regions.scales);
  Tensor grad_fine = at::empty({grad.size(0), finest * finest, classes}, grad.options());
  dispatch_math(grad.scalar_type(), [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, grad.size(0), grain(scales.cells * classes), [&](int64_t begin, int64_t end) {
      logit_kernels_for<T>().fold(
          grad.data_ptr<T>(), finest, scales, classes, grad_fine.data_ptr<T>(), begin, end);
    });
  });
  return grad_fine;
}

// Local logits (B, N, K) from pooled features (B, cells, C).
Tensor project(const Tensor& pooled, const Tensor& weight, const Optional& bias, const Regions& regions) {
  const at::ScalarType dtype = pooled.scalar_type();
  const Tensor cells = pooled.flatten(0, 1), columns = weight.to(dtype).t();
  Tensor logits = bias.has_value() ? at::addmm(bias->to(dtype), cells, columns) : at::mm(cells, columns);
  return expand(logits.view({pooled.size(0), pooled.size(1), weight.size(0)}), regions);
}

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

struct ForwardState {
  Tensor loss, saved;
};

// The reduced loss of logits (B, N, K), which are overwritten, and what its backward needs: dl/dz over all regions.
ForwardState gram_forward(const Tensor& student, const Tensor& teacher, const GramOptions& options, bool save) {
  const bool keep = save && options.keeps_logits();
  Tensor saved = keep ? at::stack({student, teacher}) : at::empty({0}, student.options());
  const Tensor weights = reduction_weights(options, student.size(0), student.options());
  const GramLoss result = gram_loss(student, teacher, options, weights, save && !keep);
  return {reduce(result.per_sample, options.reduction), result.grad.defined() ? result.grad : saved};
}

// dl/dz over the cells that `saved` covers, times the upstream gradient.
Tensor gram_backward(const Tensor& grad_loss, const Tensor& saved, const GramOptions& options) {
  const Tensor upstream = grad_loss.to(saved.scalar_type());
  if (options.keeps_logits()) {
    return gram_loss(saved[0].clone(), saved[1].clone(), options, upstream, true).grad;
  }
  return saved * (options.reduction == Reduction::none ? upstream.view({-1, 1, 1}) : upstream);
}

// The wanted gradients from dl/dz over the pooled cells (B, cells, K).
std::tuple<Tensor, Tensor, Tensor> network_backward(
    const Tensor& grad_cells, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size, at::IntArrayRef stride,
    at::ScalarType dtype, at::ScalarType bias_dtype, const Regions& regions, const c10::List<bool>& wanted) {
  TORCH_CHECK_VALUE(wanted.size() == 3, "wanted must have 3 items, got ", wanted.size());
  const auto options = grad_cells.options();
  const Tensor grad_rows = grad_cells.flatten(0, 1);  // [B·cells, K]
  Tensor features = at::empty({0}, options.dtype(dtype));
  Tensor weights = at::empty({0}, weight.options());
  Tensor bias = at::empty({0}, options.dtype(bias_dtype));
  if (wanted[0]) {
    const Tensor grad_pooled = at::mm(grad_rows, weight.to(grad_rows.scalar_type()));
    features = unpool(grad_pooled, size, stride, dtype, regions);
  }
  if (wanted[1]) weights = at::mm(grad_rows.t(), pooled.flatten(0, 1)).to(weight.scalar_type());
  if (wanted[2]) bias = grad_rows.sum(0).to(bias_dtype);
  return {features, weights, bias};
}

Regions regions_of(at::IntArrayRef scales, std::string_view pyramid, at::IntArrayRef size) {
  TORCH_CHECK_VALUE(size.size() == 4, "features must have shape (B, C, H, W), got ", size);
  return Regions(scales, parse_pyramid(pyramid), size[2], size[3]);
}

std::tuple<Tensor, Tensor> region_logits(
    const Tensor& features, const Tensor& weight, const Optional& bias, at::IntArrayRef scales,
    std::string_view pyramid, bool save_pooled) {
  const PlainDispatch plain;
  check_network(features, weight, bias);
  const Regions regions = regions_of(scales, pyramid, features.sizes());
  const Tensor pooled = pool(features, regions, math_dtype({&features, &weight, pointer(bias)}));
  const Tensor logits = project(pooled, weight, bias, regions);
  return {logits.transpose(1, 2), save_pooled ? pooled : at::empty({0}, pooled.options())};
}

std::tuple<Tensor, Tensor, Tensor> region_logits_backward(
    const Tensor& grad_logits, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size,
    at::IntArrayRef stride, at::ScalarType dtype, at::ScalarType bias_dtype, at::IntArrayRef scales,
    std::string_view pyramid, const c10::List<bool>& wanted) {
  const PlainDispatch plain;
  const Regions regions = regions_of(scales, pyramid, size);
  const Tensor grad = fold(grad_logits.transpose(1, 2).contiguous(), regions);
  return network_backward(grad, pooled, weight, size, stride, dtype, bias_dtype, regions, wanted);
}

// (B, K, N) in any layout and dtype -> a fresh (B, N, K) in the dtype of the math.
Tensor own_logits(const Tensor& logits, at::ScalarType dtype) {
  Tensor own = at::empty({logits.size(0), logits.size(2), logits.size(1)}, logits.options().dtype(dtype));
  return own.copy_(logits.transpose(1, 2));
}

std::tuple<Tensor, Tensor> gram_kl(
    const Tensor& student, const Tensor& teacher, at::IntArrayRef scales, at::ArrayRef<double> scale_weights,
    std::string_view gram, std::string_view normalize, double temperature, std::string_view reduction,
    bool save_gradient) {
  const PlainDispatch plain;
  const GramOptions options(scales, scale_weights, gram, normalize, temperature, reduction);
  TORCH_CHECK_VALUE(
      student.dim() == 3 && student.sizes() == teacher.sizes() && student.size(2) == cell_count(options.scales),
      "logits must both have shape (B, K, ", cell_count(options.scales), "), got ", student.sizes(), " and ",
      teacher.sizes());
  const at::ScalarType dtype = math_dtype({&student, &teacher});
  const ForwardState state =
      gram_forward(own_logits(student, dtype), own_logits(teacher, dtype), options, save_gradient);
  return {state.loss, state.saved};
}

Tensor gram_kl_backward(
    const Tensor& grad_loss, const Tensor& saved, at::ScalarType dtype, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram, std::string_view normalize, double temperature,
    std::string_view reduction) {
  const PlainDispatch plain;
  const GramOptions options(scales, scale_weights, gram, normalize, temperature, reduction);
  return gram_backward(grad_loss, saved, options).to(dtype).transpose(1, 2);
}

std::tuple<Tensor, Tensor, Tensor> icd_loss(
    const Tensor& student_features, const Tensor& student_weight, const Optional& student_bias,
    const Tensor& teacher_features, const Tensor& teacher_weight, const Optional& teacher_bias, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram, std::string_view pyramid, std::string_view normalize,
    double temperature, std::string_view reduction, bool save_gradient, bool save_pooled) {
  const PlainDispatch plain;
  check_network(student_features, student_weight, student_bias);
  check_network(teacher_features, teacher_weight, teacher_bias);
  TORCH_CHECK_VALUE(
      student_features.size(0) == teacher_features.size(0) && student_weight.size(0) == teacher_weight.size(0),
      "student and teacher must agree in batch size and classes");
  const GramOptions options(scales, scale_weights, gram, normalize, temperature, reduction);
  const Regions student_regions = regions_of(scales, pyramid, student_features.sizes());
  const Regions teacher_regions = regions_of(scales, pyramid, teacher_features.sizes());
  const at::ScalarType dtype = math_dtype(
      {&student_features, &student_weight, pointer(student_bias), &teacher_features, &teacher_weight,
       pointer(teacher_bias)});
  const Tensor teacher = project(pool(teacher_features, teacher_regions, dtype), teacher_weight, teacher_bias, teacher_regions);
  Tensor pooled = pool(student_features, student_regions, dtype);
  const Tensor student = project(pooled, student_weight, student_bias, student_regions);
  if (!save_pooled) pooled = at::empty({0}, pooled.options());
  ForwardState state = gram_forward(student, teacher, options, save_gradient);
  if (save_gradient && !options.keeps_logits()) state.saved = fold(state.saved, student_regions);
  return {state.loss, state.saved, pooled};
}

std::tuple<Tensor, Tensor, Tensor> icd_loss_backward(
    const Tensor& grad_loss, const Tensor& saved, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size,
    at::IntArrayRef stride, at::ScalarType dtype, at::ScalarType bias_dtype, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram, std::string_view pyramid, std::string_view normalize,
    double temperature, std::string_view reduction, const c10::List<bool>& wanted) {
  const PlainDispatch plain;
  const GramOptions options(scales, scale_weights, gram, normalize, temperature, reduction);
  const Regions regions = regions_of(scales, pyramid, size);
  Tensor grad = gram_backward(grad_loss, saved, options);
  if (options.keeps_logits()) grad = fold(grad, regions);
  return network_backward(grad, pooled, weight, size, stride, dtype, bias_dtype, regions, wanted);
}

}  // namespace
}  // namespace icd::cpu

TORCH_LIBRARY_IMPL(icd_kernels, CPU, library) {
  library.impl("region_logits", icd::cpu::region_logits);
  library.impl("region_logits_backward", icd::cpu::region_logits_backward);
  library.impl("gram_kl", icd::cpu::gram_kl);
  library.impl("gram_kl_backward", icd::cpu::gram_kl_backward);
  library.impl("icd_loss", icd::cpu::icd_loss);
  library.impl("icd_loss_backward", icd::cpu::icd_loss_backward);
}
