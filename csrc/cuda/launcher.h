// The operators on CUDA tensors (icd_kernels/operators.py says what each computes and keeps).
#pragma once

#include <tuple>

#include "../common/arguments.h"

namespace icd::cuda {

Tensor region_features(const Tensor& features, at::IntArrayRef scales);

Tensor region_features_backward(
    const Tensor& grad, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype, at::IntArrayRef scales);

std::tuple<Tensor, Tensor> region_logits(
    const Tensor& features, const Tensor& weight, const Optional& bias, at::IntArrayRef scales,
    std::string_view pyramid, bool save_pooled);

std::tuple<Tensor, Tensor, Tensor> region_logits_backward(
    const Tensor& grad_logits, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size, at::IntArrayRef stride,
    at::ScalarType dtype, at::ScalarType bias_dtype, at::IntArrayRef scales, std::string_view pyramid,
    const c10::List<bool>& wanted);

std::tuple<Tensor, Tensor> gram_kl(
    const Tensor& student, const Tensor& teacher, at::IntArrayRef scales, at::ArrayRef<double> scale_weights,
    std::string_view gram, std::string_view normalize, double temperature, std::string_view reduction,
    bool save_gradient);

Tensor gram_kl_backward(
    const Tensor& grad_loss, const Tensor& saved, at::ScalarType dtype, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram, std::string_view normalize, double temperature,
    std::string_view reduction);

std::tuple<Tensor, Tensor, Tensor> icd_loss(
    const Tensor& student_features, const Tensor& student_weight, const Optional& student_bias,
    const Tensor& teacher_features, const Tensor& teacher_weight, const Optional& teacher_bias, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram, std::string_view pyramid, std::string_view normalize,
    double temperature, std::string_view reduction, bool save_gradient, bool save_pooled);

std::tuple<Tensor, Tensor, Tensor> icd_loss_backward(
    const Tensor& grad_loss, const Tensor& saved, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size,
    at::IntArrayRef stride, at::ScalarType dtype, at::ScalarType bias_dtype, at::IntArrayRef scales,
    at::ArrayRef<double> scale_weights, std::string_view gram, std::string_view pyramid, std::string_view normalize,
    double temperature, std::string_view reduction, const c10::List<bool>& wanted);

}  // namespace icd::cuda
