#include "launcher.h"

#include <ATen/ops/empty.h>

#include "stages.h"

namespace icd::cuda {
namespace {

// The reduced loss of logits, and what its backward needs over `cells` cells.
struct LossState {
  Tensor loss, saved;
};

// finest and cells: the grid that the saved gradient is folded onto (0: not folded) and its cells.
template <typename T>
LossState gram_forward(
    const Call& call, const GramInputs& inputs, const Tensor& counters, int64_t finest, int64_t cells, bool save) {
  const auto options = counters.options().dtype(scalar_type_of<T>());
  const int64_t batch = inputs.batch, classes = inputs.classes;
  GramOutputs outputs = {{}, {}, {}, finest};
  outputs.loss = inputs.options.reduction == Reduction::none ? at::empty({batch}, options) : at::empty({}, options);
  if (save && inputs.options.keeps_logits()) {
    outputs.logits = at::empty({2, batch, cell_count(inputs.options.scales), classes}, options);
  } else if (save) {
    outputs.grad = at::empty({batch, cells, classes}, options);
  }
  gram<T>(call, inputs, no_upstream(), counters, outputs);
  const Tensor& saved = outputs.logits.defined() ? outputs.logits : outputs.grad;
  return {outputs.loss, saved.defined() ? saved : at::empty({0}, options)};
}

// dl/dz over the base cells from both networks' saved logits (2, B, N, K).
template <typename T>
Tensor gram_backward(
    const Call& call, const Tensor& saved, const Upstream& upstream, const GramOptions& options, int64_t finest,
    int64_t cells) {
  const Tensor counters = new_counters(saved);
  clear_counters(call, counters);
  const GramInputs inputs = {
      source_of(saved.select(0, 0).transpose(1, 2)), source_of(saved.select(0, 1).transpose(1, 2)), saved.size(1),
      saved.size(3), options};
  GramOutputs outputs = {{}, at::empty({saved.size(1), cells, saved.size(3)}, saved.options()), {}, finest};
  gram<T>(call, inputs, upstream, counters, outputs);
  return outputs.grad;
}

int64_t folded_side(const Regions& regions) { return regions.folded ? regions.base[0] : 0; }

}  // namespace

Tensor region_features(const Tensor& features, at::IntArrayRef scales) {
  const PlainDispatch plain;
  check_map(features);
  const Call call(features);
  const Regions regions(scales);
  const Optional no_bias;
  const std::vector<Network> networks = {{features, features, no_bias, regions}};  // pooling reads no weight
  Tensor pooled;
  dispatch_math(math_dtype({&features}), [&](auto t) { pooled = pool<decltype(t)>(call, networks, {})[0]; });
  return pooled;
}

Tensor region_features_backward(
    const Tensor& grad, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype, at::IntArrayRef scales) {
  const PlainDispatch plain;
  const Regions regions(scales);
  check_cells(grad, size, regions.cells());
  const Call call(grad);
  Tensor features;
  dispatch_math(grad.scalar_type(), [&](auto t) {
    features = unpool<decltype(t)>(call, grad.contiguous(), size, stride, dtype, regions);
  });
  return features;
}

std::tuple<Tensor, Tensor> region_logits(
    const Tensor& features, const Tensor& weight, const Optional& bias, at::IntArrayRef scales,
    std::string_view pyramid, bool save_pooled) {
  const PlainDispatch plain;
  check_network(features, weight, bias);
  check_devices({&features, &weight, pointer(bias)});
  const Call call(features);
  const Regions regions = regions_of(scales, pyramid, features.sizes());
  const std::vector<Network> networks = {{features, weight, bias, regions}};
  std::tuple<Tensor, Tensor> results;
  dispatch_math(math_dtype({&features, &weight, pointer(bias)}), [&](auto t) {
    using T = decltype(t);
    std::vector<Tensor> pooled = pool<T>(call, networks, {});
    const Projections projections = project<T>(call, networks, pooled);
    const LogitSource& source = projections.sources[0];
    const bool finished = !regions.folded && source.splits == 1 && source.bias == nullptr;
    const Tensor logits = finished
        ? projections.memory.view({features.size(0), regions.cells(), weight.size(0)})
        : region_rows<T>(call, networks[0], source);
    results = {logits.transpose(1, 2), save_pooled ? pooled[0] : at::empty({0}, pooled[0].options())};
  });
  return results;
}

std::tuple<Tensor, Tensor, Tensor> region_logits_backward(
    const Tensor& grad_logits, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size, at::IntArrayRef stride,
    at::ScalarType dtype, at::ScalarType bias_dtype, at::IntArrayRef scales, std::string_view pyramid,
    const c10::List<bool>& wanted) {
  const PlainDispatch plain;
  check_wanted(wanted);
  check_devices({&grad_logits, &pooled, &weight});
  const Call call(grad_logits);
  const Regions regions = regions_of(scales, pyramid, size);
  const Upstream upstream = no_upstream();
  std::tuple<Tensor, Tensor, Tensor> gradients;
  dispatch_math(grad_logits.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const Tensor grad_cells = fold<T>(call, grad_logits, regions);
    gradients = network_backward<T>(
        call, {grad_cells, upstream, pooled, weight, size, stride, dtype, bias_dtype, regions}, wanted);
  });
  return gradients;
}

std::tuple<Tensor, Tensor> gram_kl(
    const Tensor& student, const Tensor& teacher, at::IntArrayRef scales, at::ArrayRef<double> scale_weights,
    std::string_view gram_name, std::string_view normalize, double temperature, std::string_view reduction,
    bool save_gradient) {
  const PlainDispatch plain;
  const GramOptions options(scales, scale_weights, gram_name, normalize, temperature, reduction);
  const int64_t cells = cell_count(options.scales);
  check_logits(student, teacher, cells);
  check_devices({&student, &teacher});
  const Call call(student);
  const Tensor counters = new_counters(student);
  clear_counters(call, counters);
  const GramInputs inputs = {source_of(student), source_of(teacher), student.size(0), student.size(1), options};
  LossState state;
  dispatch_math(math_dtype({&student, &teacher}), [&](auto t) {
    state = gram_forward<decltype(t)>(call, inputs, counters, 0, cells, save_gradient);
  });
  return {state.loss, state.saved};
}

Tensor gram_kl_backward(
    const Tensor& grad_loss, const Tensor& saved, at::ScalarType dtype, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram_name, std::string_view normalize, double temperature,
    std::string_view reduction) {
  const PlainDispatch plain;
  const GramOptions options(scales, scale_weights, gram_name, normalize, temperature, reduction);
  check_devices({&grad_loss, &saved});
  const Call call(saved);
  const Upstream upstream = upstream_of_loss(grad_loss);
  Tensor grad;
  dispatch_math(saved.scalar_type(), [&](auto t) {
    using T = decltype(t);
    grad = options.keeps_logits()
        ? gram_backward<T>(call, saved, upstream, options, 0, cell_count(options.scales)).to(dtype)
        : scale<T>(call, saved, upstream, dtype);
  });
  return grad.transpose(1, 2);
}

std::tuple<Tensor, Tensor, Tensor> icd_loss(
    const Tensor& student_features, const Tensor& student_weight, const Optional& student_bias,
    const Tensor& teacher_features, const Tensor& teacher_weight, const Optional& teacher_bias, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram_name, std::string_view pyramid,
    std::string_view normalize, double temperature, std::string_view reduction, bool save_gradient, bool save_pooled) {
  const PlainDispatch plain;
  check_network(student_features, student_weight, student_bias);
  check_network(teacher_features, teacher_weight, teacher_bias);
  check_networks_agree(student_features, student_weight, teacher_features, teacher_weight);
  const std::initializer_list<const Tensor*> tensors = {
      &student_features, &student_weight, pointer(student_bias),
      &teacher_features, &teacher_weight, pointer(teacher_bias)};
  check_devices(tensors);
  const Call call(student_features);
  const GramOptions options(scales, scale_weights, gram_name, normalize, temperature, reduction);
  const Regions student_regions = regions_of(scales, pyramid, student_features.sizes());
  const Regions teacher_regions = regions_of(scales, pyramid, teacher_features.sizes());
  const std::vector<Network> networks = {
      {student_features, student_weight, student_bias, student_regions},
      {teacher_features, teacher_weight, teacher_bias, teacher_regions}};
  const Tensor counters = new_counters(student_features);
  LossState state;
  Tensor pooled;
  dispatch_math(math_dtype(tensors), [&](auto t) {
    using T = decltype(t);
    const std::vector<Tensor> both = pool<T>(call, networks, counters);
    const Projections projections = project<T>(call, networks, both);
    const GramInputs inputs = {
        projections.sources[0], projections.sources[1], student_features.size(0), student_weight.size(0), options};
    state = gram_forward<T>(
        call, inputs, counters, folded_side(student_regions), student_regions.base_cells(), save_gradient);
    pooled = save_pooled ? both[0] : at::empty({0}, both[0].options());
  });
  return {state.loss, state.saved, pooled};
}

std::tuple<Tensor, Tensor, Tensor> icd_loss_backward(
    const Tensor& grad_loss, const Tensor& saved, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size,
    at::IntArrayRef stride, at::ScalarType dtype, at::ScalarType bias_dtype, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram_name, std::string_view pyramid,
    std::string_view normalize, double temperature, std::string_view reduction, const c10::List<bool>& wanted) {
  const PlainDispatch plain;
  check_wanted(wanted);
  const GramOptions options(scales, scale_weights, gram_name, normalize, temperature, reduction);
  check_devices({&grad_loss, &saved, &pooled, &weight});
  const Call call(saved);
  const Regions regions = regions_of(scales, pyramid, size);
  const Upstream upstream = upstream_of_loss(grad_loss), none = no_upstream();
  std::tuple<Tensor, Tensor, Tensor> gradients;
  dispatch_math(saved.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const bool from_logits = options.keeps_logits();
    const Tensor grad_cells = from_logits
        ? gram_backward<T>(call, saved, upstream, options, folded_side(regions), regions.base_cells())
        : saved;
    gradients = network_backward<T>(
        call, {grad_cells, from_logits ? none : upstream, pooled, weight, size, stride, dtype, bias_dtype, regions},
        wanted);
  });
  return gradients;
}

}  // namespace icd::cuda
