// The operators on CPU tensors: check, and compute stage by stage.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "kernels.h"
#include "logits.h"
#include "loss.h"

namespace icd::cpu {
namespace {

Tensor region_features(const Tensor& features, at::IntArrayRef scales) {
  const PlainDispatch plain;
  check_map(features);
  return pool(features, Regions(scales), math_dtype({&features}));
}

Tensor region_features_backward(
    const Tensor& grad, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype, at::IntArrayRef scales) {
  const PlainDispatch plain;
  const Regions regions(scales);
  check_cells(grad, size, regions.cells());
  return unpool(grad.contiguous(), size, stride, dtype, regions);
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
  check_wanted(wanted);
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
  check_logits(student, teacher, cell_count(options.scales));
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
  check_networks_agree(student_features, student_weight, teacher_features, teacher_weight);
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
  check_wanted(wanted);
  const GramOptions options(scales, scale_weights, gram, normalize, temperature, reduction);
  const Regions regions = regions_of(scales, pyramid, size);
  Tensor grad = gram_backward(grad_loss, saved, options);
  if (options.keeps_logits()) grad = fold(grad, regions);
  return network_backward(grad, pooled, weight, size, stride, dtype, bias_dtype, regions, wanted);
}

}  // namespace
}  // namespace icd::cpu

TORCH_LIBRARY_IMPL(icd_kernels, CPU, library) {
  library.impl("region_features", icd::cpu::region_features);
  library.impl("region_features_backward", icd::cpu::region_features_backward);
  library.impl("region_logits", icd::cpu::region_logits);
  library.impl("region_logits_backward", icd::cpu::region_logits_backward);
  library.impl("gram_kl", icd::cpu::gram_kl);
  library.impl("gram_kl_backward", icd::cpu::gram_kl_backward);
  library.impl("icd_loss", icd::cpu::icd_loss);
  library.impl("icd_loss_backward", icd::cpu::icd_loss_backward);
}

TORCH_LIBRARY_FRAGMENT(icd_kernels, library) {
  // Which of the compiled instruction sets the CPU kernels take here.
  library.def("cpu_instruction_set() -> str", []() { return std::string(icd::cpu::kernels().instruction_set); });
}
