// The operator row_losses on CPU tensors: KD, DKD and NKD of every region's logits, with their gradient.
#include <tuple>

#include "dispatch.h"

namespace icd::cpu {
namespace {

void check_rows(
    const Tensor& student, const Tensor& teacher, const Tensor& target, const std::vector<double>& factors) {
  check(
      student.dim() == 3 && student.sizes().equals(teacher.sizes()), "logits must both have shape (B, K, N), got ",
      student.sizes(), " and ", teacher.sizes());
  const ScalarType dtype = student.scalar_type();
  check(
      dtype == teacher.scalar_type() && (dtype == ScalarType::Float || dtype == ScalarType::Double),
      "logits must both be float32 or float64, got ", dtype, " and ", teacher.scalar_type());
  check(
      target.dim() == 1 && target.size(0) == student.size(0), "target must have shape (", student.size(0), ",), got ",
      target.sizes());
  check(target.scalar_type() == ScalarType::Long, "target must be int64, got ", target.scalar_type());
  check(factors.size() == 5, "factors must have 5 items, got ", factors.size());
  const int64_t classes = student.size(1);
  const int64_t* index = data_of<int64_t>(target);
  for (int64_t image = 0; image < target.size(0); ++image) {
    check<std::out_of_range>(
        0 <= index[image] && index[image] < classes, "target must hold classes from 0 to ", classes - 1, ", got ",
        index[image]);
  }
}

template <typename T>
LogitRows<T> rows_of(const Tensor& logits) {
  return {
      .data = data_of<T>(logits),
      .classes = logits.size(1),
      .regions = logits.size(2),
      .image_stride = logits.stride(0),
      .class_stride = logits.stride(1),
      .region_stride = logits.stride(2)};
}

std::tuple<Tensor, Tensor> row_losses(
    const Tensor& student, const Tensor& teacher, const Tensor& any_target, const std::vector<double>& factors,
    double temperature, double complementary_weight, bool save_gradient) {
  const NoGrad no_grad;
  const Tensor target = torch::stable::contiguous(any_target);
  check_rows(student, teacher, target, factors);
  const ScalarType dtype = student.scalar_type();
  const int64_t batch = student.size(0), classes = student.size(1), regions = student.size(2);
  const Tensor losses = empty({batch, regions}, dtype, student);
  const Tensor saved = empty({batch, save_gradient ? regions : 0, classes}, dtype, student);
  const RowFactors each{
      .whole = factors[0], .binary = factors[1], .others = factors[2], .entropy = factors[3], .target = factors[4]};
  dispatch_math(dtype, [&](auto t) {
    using T = decltype(t);
    const LogitKernels<T>& kernel = logit_kernels_for<T>();
    in_parallel(batch, regions * classes * 16, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.row_scratch(classes)]);
      kernel.row_losses(
          each, static_cast<T>(temperature), static_cast<T>(complementary_weight), rows_of<T>(student),
          rows_of<T>(teacher), data_of<int64_t>(target), written<T>(losses),
          save_gradient ? written<T>(saved) : nullptr, scratch.get(), begin, end);
    });
  });
  return {losses, save_gradient ? swapped(saved) : empty({0}, dtype, student)};
}

}  // namespace
}  // namespace icd::cpu

STABLE_TORCH_LIBRARY_IMPL(icd_kernels, CPU, library) {
  library.impl("row_losses", TORCH_BOX(&icd::cpu::row_losses));
}
