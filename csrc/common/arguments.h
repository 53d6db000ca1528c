// The arguments of an operator call: checks and dtypes that every compiled backend shares. Host only.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>

#include "options.h"

namespace icd {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Nothing inside an operator is recorded by autograd or recast by autocast.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// The dtype of the math: float64 if any tensor is, otherwise float32. A null pointer is a bias left out.
inline at::ScalarType math_dtype(std::initializer_list<const Tensor*> tensors) {
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

// Calls f(T()) with the C++ type of the math.
template <typename F>
void dispatch_math(at::ScalarType dtype, F f) {
  if (dtype == at::kDouble) f(double());
  else f(float());
}

inline const Tensor* pointer(const Optional& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

inline void check_map(const Tensor& features) {
  TORCH_CHECK_VALUE(features.dim() == 4, "features must have shape (B, C, H, W), got ", features.sizes());
}

// The gradient (B, N, C) by pooled features of a map of this size.
inline void check_cells(const Tensor& grad, at::IntArrayRef size, int64_t cells) {
  TORCH_CHECK_VALUE(size.size() == 4, "features must have shape (B, C, H, W), got ", size);
  TORCH_CHECK_VALUE(
      grad.dim() == 3 && grad.size(0) == size[0] && grad.size(1) == cells && grad.size(2) == size[1],
      "grad must have shape (", size[0], ", ", cells, ", ", size[1], "), got ", grad.sizes());
}

inline void check_network(const Tensor& features, const Tensor& weight, const Optional& bias) {
  check_map(features);
  TORCH_CHECK_VALUE(
      weight.dim() == 2 && weight.size(1) == features.size(1), "weight must have shape (K, ", features.size(1),
      "), got ", weight.sizes());
  TORCH_CHECK_VALUE(
      !bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "bias must have shape (",
      weight.size(0), ",)");
}

inline void check_networks_agree(
    const Tensor& student_features, const Tensor& student_weight, const Tensor& teacher_features,
    const Tensor& teacher_weight) {
  TORCH_CHECK_VALUE(
      student_features.size(0) == teacher_features.size(0) && student_weight.size(0) == teacher_weight.size(0),
      "student and teacher must agree in batch size and classes");
}

inline void check_logits(const Tensor& student, const Tensor& teacher, int64_t cells) {
  TORCH_CHECK_VALUE(
      student.dim() == 3 && student.sizes() == teacher.sizes() && student.size(2) == cells,
      "logits must both have shape (B, K, ", cells, "), got ", student.sizes(), " and ", teacher.sizes());
}

inline void check_wanted(const c10::List<bool>& wanted) {
  TORCH_CHECK_VALUE(wanted.size() == 3, "wanted must have 3 items, got ", wanted.size());
}

inline Regions regions_of(at::IntArrayRef scales, std::string_view pyramid, at::IntArrayRef size) {
  TORCH_CHECK_VALUE(size.size() == 4, "features must have shape (B, C, H, W), got ", size);
  return Regions(scales, parse_pyramid(pyramid), size[2], size[3]);
}

}  // namespace icd
