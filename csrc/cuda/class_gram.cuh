// The class Gram of one cell, (z_s, z_t) -> (KL, gradient by z_s), by the sum linear in K or an exact one.
#pragma once

#include "exact_class.cuh"
#include "linear_class.cuh"
#include "symmetric_class.cuh"

namespace icd::cuda {

template <typename T>
union ClassShared {
  ExactShared<T> exact;
  SymmetricShared symmetric;
  LinearShared<T> linear;
};

static_assert(sizeof(ClassShared<double>) <= 48 * 1024 - 256, "static shared memory, with room for the rest");

// The KL summed over the K rows, in thread 0. grad: [K] or null, D z + Dᵀ z. scratch: [K, kClassScratch<T>].
template <typename T>
ICD_DEVICE double class_cell(
    const GramArguments<T>& arguments, const T* student, const T* teacher, T* scratch, T* grad, ClassShared<T>& shared) {
  const int64_t classes = arguments.classes;
  const T temperature = arguments.temperature;
  const bool symmetric = can_be_symmetric(student, teacher, classes, temperature);
  double loss;
  if (arguments.class_sum != ClassSum::exact &&
      linear_class(
          arguments.class_sum, student, teacher, classes, temperature, arguments.float64_cost, symmetric,
          reinterpret_cast<double*>(scratch), grad, shared.linear, loss)) {
    return loss;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (symmetric && symmetric_class(student, teacher, classes, temperature, grad, shared.symmetric, loss)) return loss;
  }
  return grad == nullptr ? exact_class<false>(student, teacher, classes, temperature, scratch, grad, shared.exact)
                         : exact_class<true>(student, teacher, classes, temperature, scratch, grad, shared.exact);
}

}  // namespace icd::cuda
