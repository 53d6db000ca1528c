// The arguments of an operator call: checks and dtypes that every compiled backend shares. Host only.
#pragma once

#include <initializer_list>

#include "options.h"

namespace icd {

// The dtype of the math: float64 if any tensor is, otherwise float32. A null pointer is a bias left out.
inline ScalarType math_dtype(std::initializer_list<const Tensor*> tensors) {
  ScalarType dtype = ScalarType::Float;
  for (const Tensor* tensor : tensors) {
    if (tensor == nullptr) continue;
    const ScalarType type = tensor->scalar_type();
    check(
        type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
            type == ScalarType::Half,
        "tensors must be float64, float32, bfloat16 or float16, got ", type);
    if (type == ScalarType::Double) dtype = ScalarType::Double;
  }
  return dtype;
}

// Calls f(T()) with the C++ type of the math.
template <typename F>
auto dispatch_math(ScalarType dtype, F f) {
  return dtype == ScalarType::Double ? f(double()) : f(float());
}

inline const Tensor* pointer(const Optional& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

// One network's side of the loss.
struct Network {
  Tensor features, weight;
  Optional bias;
  Regions regions;
};

// How the gradient by a map, and by a bias, is laid out.
struct Layout {
  std::vector<int64_t> size, stride;
  ScalarType dtype, bias_dtype;
};

inline void check_map(const Tensor& features) {
  check(features.dim() == 4, "features must have shape (B, C, H, W), got ", features.sizes());
}

inline void check_layout(const Layout& layout) {
  check(
      layout.size.size() == 4 && layout.stride.size() == 4, "size and stride must have 4 items, got ",
      layout.size.size(), " and ", layout.stride.size());
}

// The gradient (B, N, C) by pooled features of a map of this layout.
inline void check_cells(const Tensor& grad, const Layout& layout, int64_t cells) {
  check_layout(layout);
  const auto& size = layout.size;
  check(
      grad.dim() == 3 && grad.size(0) == size[0] && grad.size(1) == cells && grad.size(2) == size[1],
      "grad must have shape (", size[0], ", ", cells, ", ", size[1], "), got ", grad.sizes());
}

inline void check_network(const Network& network) {
  const auto& [features, weight, bias, regions] = network;
  check_map(features);
  check(
      weight.dim() == 2 && weight.size(1) == features.size(1), "weight must have shape (K, ", features.size(1),
      "), got ", weight.sizes());
  check(
      !bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "bias must have shape (",
      weight.size(0), ",)");
}

inline void check_networks(const Network& student, const Network& teacher) {
  check_network(student);
  check_network(teacher);
  check(
      student.features.size(0) == teacher.features.size(0) && student.weight.size(0) == teacher.weight.size(0),
      "student and teacher must agree in batch size and classes");
}

inline void check_logits(const Tensor& student, const Tensor& teacher, int64_t cells) {
  check(
      student.dim() == 3 && student.sizes().equals(teacher.sizes()) && student.size(2) == cells,
      "logits must both have shape (B, K, ", cells, "), got ", student.sizes(), " and ", teacher.sizes());
}

inline void check_wanted(const std::vector<bool>& wanted) {
  check(wanted.size() == 3, "wanted must have 3 items, got ", wanted.size());
}

inline void check_devices(std::initializer_list<const Tensor*> tensors) {
  const auto device = (*tensors.begin())->device();
  for (const Tensor* tensor : tensors) {
    check(tensor == nullptr || tensor->device() == device, "all tensors must be on one device");
  }
}

}  // namespace icd
