// The operator row_losses on CPU tensors: KD, DKD and NKD of every region's logits, with their gradient.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>
#include <tuple>

#include "dispatch.h"

namespace icd::cpu {
namespace {

void check_rows(const Tensor& student, const Tensor& teacher, const Tensor& target, at::ArrayRef<double> factors) {
  TORCH_CHECK_VALUE(
      student.dim() == 3 && student.sizes() == teacher.sizes(), "logits must both have shape (B, K, N), got ",
      student.sizes(), " and ", teacher.sizes());
  TORCH_CHECK_TYPE(
      student.scalar_type() == teacher.scalar_type() && (student.scalar_type() == at::kFloat || student.scalar_type() == at::kDouble),
      "logits must both be float32 or float64, got ", student.scalar_type(), " and ", teacher.scalar_type());
  TORCH_CHECK_VALUE(
      target.dim() == 1 && target.size(0) == student.size(0), "target must have shape (", student.size(0), ",), got ",
      target.sizes());
  TORCH_CHECK_TYPE(target.scalar_type() == at::kLong, "target must be int64, got ", target.scalar_type());
  TORCH_CHECK_VALUE(factors.size() == 5, "factors must have 5 items, got ", factors.size());
  const int64_t classes = student.size(1);
  const int64_t* index = target.const_data_ptr<int64_t>();
  for (int64_t image = 0; image < target.size(0); ++image) {
    TORCH_CHECK_INDEX(
        0 <= index[image] && index[image] < classes, "target must hold classes from 0 to ", classes - 1, ", got ",
        index[image]);
  }
}

template <typename T>
LogitRows<T> rows_of(const Tensor& logits) {
  return {
      .data = logits.const_data_ptr<T>(),
      .classes = logits.size(1),
      .regions = logits.size(2),
      .image_stride = logits.stride(0),
      .class_stride = logits.stride(1),
      .region_stride = logits.stride(2)};
}

std::tuple<Tensor, Tensor> row_losses(
    const Tensor& student, const Tensor& teacher, const Tensor& any_target, at::ArrayRef<double> factors,
    double temperature, double complementary_weight, bool save_gradient) {
  const PlainDispatch plain;
  const Tensor target = any_target.contiguous();
  check_rows(student, teacher, target, factors);
  const int64_t batch = student.size(0), classes = student.size(1), regions = student.size(2);
  Tensor losses = at::empty({batch, regions}, student.options());
  Tensor saved = at::empty({batch, save_gradient ? regions : 0, classes}, student.options());
  const RowFactors each{
      .whole = factors[0], .binary = factors[1], .others = factors[2], .entropy = factors[3], .target = factors[4]};
  dispatch_math(student.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const LogitKernels<T>& kernel = logit_kernels_for<T>();
    at::parallel_for(0, batch, grain(regions * classes * 16), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.row_scratch(classes)]);
      kernel.row_losses(
          each, static_cast<T>(temperature), static_cast<T>(complementary_weight), rows_of<T>(student),
          rows_of<T>(teacher), target.const_data_ptr<int64_t>(), losses.data_ptr<T>(),
          save_gradient ? saved.data_ptr<T>() : nullptr, scratch.get(), begin, end);
    });
  });
  return {losses, save_gradient ? saved.transpose(1, 2) : at::empty({0}, student.options())};
}

}  // namespace
}  // namespace icd::cpu

TORCH_LIBRARY_IMPL(icd_kernels, CPU, library) { library.impl("row_losses", icd::cpu::row_losses); }
