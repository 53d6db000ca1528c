// Tensors by PyTorch's stable ABI (LibTorch's torch/csrc/stable): an extension that keeps to it runs with every torch
// from the version it names on, whichever it was built with. Here are the few calls that the operators need. Host only.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace icd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// A shape as Python prints it.
inline std::ostream& print_sizes(std::ostream& out, Sizes sizes) {
  out << "(";
  for (size_t i = 0; i < sizes.size(); ++i) out << (i == 0 ? "" : ", ") << sizes[i];
  return out << (sizes.size() == 1 ? ",)" : ")");
}

template <typename Part>
void print_part(std::ostream& out, const Part& part) {
  if constexpr (std::is_convertible_v<Part, Sizes> && !std::is_arithmetic_v<Part>) print_sizes(out, part);
  else if constexpr (std::is_same_v<Part, ScalarType>) out << torch::headeronly::toString(part);
  else out << part;
}

// What Error says where a condition does not hold: std::invalid_argument becomes Python's ValueError, std::out_of_range
// its IndexError.
template <typename Error = std::invalid_argument, typename... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (print_part(text, parts), ...);
  throw Error(text.str());
}

// Nothing inside an operator is recorded by autograd.
class NoGrad {
 public:
  NoGrad() : was_enabled_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(was_enabled_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool was_enabled_;
};

// Uninitialised, on the device of `like`.
inline Tensor empty_strided(Sizes size, Sizes stride, ScalarType dtype, const Tensor& like) {
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(size.size()), size.data(), stride.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device, index, &made));
  return Tensor(made);
}

inline std::vector<int64_t> contiguous_stride(Sizes size) {
  std::vector<int64_t> stride(size.size());
  int64_t step = 1;
  for (size_t dim = size.size(); dim-- > 0;) {
    stride[dim] = step;
    step *= size[dim] > 1 ? size[dim] : 1;
  }
  return stride;
}

inline Tensor empty(Sizes size, ScalarType dtype, const Tensor& like) {
  return empty_strided(size, contiguous_stride(size), dtype, like);
}

inline Tensor empty(std::initializer_list<int64_t> size, ScalarType dtype, const Tensor& like) {
  return empty(Sizes(size.begin(), size.size()), dtype, like);
}

// The same memory as another shape, `offset` elements on.
inline Tensor view(
    const Tensor& tensor, std::initializer_list<int64_t> size, std::initializer_list<int64_t> stride,
    int64_t offset = 0) {
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      tensor.get(), static_cast<int64_t>(size.size()), size.begin(), stride.begin(), offset, &made));
  return Tensor(made);
}

inline Tensor transposed(const Tensor& matrix) {
  return view(matrix, {matrix.size(1), matrix.size(0)}, {matrix.stride(1), matrix.stride(0)});
}

// (B, K, N) as (B, N, K), and back.
inline Tensor swapped(const Tensor& tensor) {
  return view(
      tensor, {tensor.size(0), tensor.size(2), tensor.size(1)},
      {tensor.stride(0), tensor.stride(2), tensor.stride(1)});
}

inline Tensor to_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

template <typename T>
constexpr ScalarType scalar_type_of() {
  return std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
}

}  // namespace icd
