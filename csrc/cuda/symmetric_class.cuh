// The exact sum of a cell's class Gram without shifts, in float32 (docs/linear_class_gram.md, "The exact sum"). No exponent
// above kMostExponent needs one, and E_ij = exp(z_i z_j/τ) is symmetric: a column's sum is a row's, with other weights.
// A thread takes a row and walks over the columns, which all threads read at once: nothing is passed between threads.
#pragma once

#include "../common/class_rows.h"
#include "exact_class.cuh"

namespace icd::cuda {

constexpr int64_t kMostSymmetric = 1024;  // classes, whose columns fit in shared memory
constexpr float kLog2 = 0.693147181f;
constexpr int kRun = 32;  // columns whose terms are added up by themselves: a long sum rounds more

// What rows need of one column, of both networks.
struct alignas(8) SymmetricColumn {
  float student, teacher;
};

struct SymmetricShared {
  SymmetricColumn logits[kMostSymmetric];
  SymmetricColumn weights[kMostSymmetric];  // s_k over the sum of row k
  double parts[kWarps];
};

// 2^x for |x| < 126, within two units in the last place.
ICD_DEVICE float exp2_bounded(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// Logits are in units in which an exponent of 2 is the product of two of them, so that E_ij and E_ji are the same to the bit.
struct SymmetricCell {
  int classes;
  float unit;  // √(log2(e)/τ)
  SymmetricShared& shared;

  ICD_DEVICE void load(const float* student, const float* teacher) {
    for (int k = threadIdx.x; k < classes; k += kThreads) shared.logits[k] = {student[k] * unit, teacher[k] * unit};
    __syncthreads();
  }

  // Threads that share a row, neighbours in a warp: as many as there are threads for.
  ICD_DEVICE int lanes_of_row() const {
    int lanes = 1;
    while (lanes < kWarp && 2 * lanes * classes <= kThreads) lanes *= 2;
    return lanes;
  }

  // sums[f] of a row, of whose columns this thread takes every `step`th; in each of the row's threads.
  template <int kSums, typename Term>
  ICD_DEVICE void add_columns(int step, float (&sums)[kSums], Term term) const {
    int k = threadIdx.x % step;
    for (; k + (kRun - 1) * step < classes; k += kRun * step) {
      float run[kSums] = {};
#pragma unroll 8
      for (int i = 0; i < kRun; ++i) term(k + i * step, run);
#pragma unroll
      for (int f = 0; f < kSums; ++f) sums[f] += run[f];
    }
    float rest[kSums] = {};
    for (; k < classes; k += step) term(k, rest);
#pragma unroll
    for (int f = 0; f < kSums; ++f) sums[f] = sum_lanes(sums[f] + rest[f], step);
  }

  // Calls visit(row, z, step) in the threads of every row, z its logits, and in those beyond the last.
  template <typename Visit>
  ICD_DEVICE void for_each_row(Visit visit) const {
    const int step = lanes_of_row();
    for (int first = 0; first < classes; first += kThreads / step) {
      const int row = first + threadIdx.x / step;
      visit(row, shared.logits[row < classes ? row : 0], step);
    }
  }

  ICD_DEVICE bool writes(int row, int step) const { return row < classes && threadIdx.x % step == 0; }

  // The KL of all rows, in every thread; grad[k] = Σ_j (q_kj - p_kj) s_j. Means are of z - z at the row's largest entry, as
  // with shifts: those of z itself would be a row's KL as the difference of two numbers near kMostExponent.
  ICD_DEVICE double rows(const RankOne<float>& student, const RankOne<float>& teacher, float* grad) const {
    double total = 0;
    for_each_row([&](int row, SymmetricColumn own, int step) {
      const SymmetricColumn top = {student.top(own.student) * unit, teacher.top(own.teacher) * unit};
      float sums[5] = {};  // of e and e (s - top) of the student's row; of e, e (s - top) and e (t - top) of the teacher's
      add_columns(step, sums, [&](int k, float (&run)[5]) {
        const SymmetricColumn z = shared.logits[k];
        const float q = exp2_bounded(own.student * z.student), p = exp2_bounded(own.teacher * z.teacher);
        run[0] += q;
        run[1] += q * (z.student - top.student);
        run[2] += p;
        run[3] += p * (z.student - top.student);
        run[4] += p * (z.teacher - top.teacher);
      });
      if (!writes(row, step)) return;
      const float q_share = 1 / sums[0], p_share = 1 / sums[2];
      const float s_sum = sums[0] * exp2_bounded(-own.student * top.student);
      const float t_sum = sums[2] * exp2_bounded(-own.teacher * top.teacher);
      const float means = (own.teacher * sums[4] - own.student * sums[3]) * p_share;
      total += static_cast<double>(std::log(s_sum / t_sum) + means * kLog2);
      shared.weights[row] = {own.student * q_share, own.student * p_share};
      if (grad != nullptr) grad[row] = sums[1] * q_share - sums[3] * p_share;
    });
    return sum_block(total, shared.parts);
  }

  // Adds to grad[j] Σ_k (q_kj - p_kj) s_k, after `rows`, and takes it out of its units.
  ICD_DEVICE void columns(float* grad) const {
    for_each_row([&](int row, SymmetricColumn own, int step) {
      float sums[1] = {};
      add_columns(step, sums, [&](int k, float (&run)[1]) {
        const SymmetricColumn z = shared.logits[k], weight = shared.weights[k];
        run[0] += exp2_bounded(own.student * z.student) * weight.student;
        run[0] -= exp2_bounded(own.teacher * z.teacher) * weight.teacher;
      });
      if (writes(row, step)) grad[row] = (grad[row] + sums[0]) / unit;
    });
  }
};

// Whether no exponent of the cell is too large, and its rows are not surely close: by each warp.
template <typename T>
ICD_DEVICE bool can_be_symmetric(const T* student, const T* teacher, int64_t classes, T temperature) {
  if (sizeof(T) != sizeof(float) || classes > kMostSymmetric) return false;
  const T s = RankOne<T>(student, classes).size(), t = RankOne<T>(teacher, classes).size();
  const T most = T(kMostExponent) * temperature;
  return s * s <= most && t * t <= most && !are_close(difference_of(student, teacher, classes), s + t, temperature);
}

// The KL summed over the K rows and grad = D s + Dᵀ s, or null; false, in every thread, where rows are so close that
// these sums leave them too few digits.
ICD_DEVICE bool symmetric_class(
    const float* student, const float* teacher, int64_t classes, float temperature, float* grad, SymmetricShared& shared,
    double& loss) {
  SymmetricCell cell = {static_cast<int>(classes), std::sqrt(1.44269504f / temperature), shared};
  cell.load(student, teacher);
  loss = cell.rows(RankOne<float>(student, classes), RankOne<float>(teacher, classes), grad);
  const bool far = !(loss < kCloseRows * static_cast<double>(classes));
  if (far && grad != nullptr) cell.columns(grad);
  __syncthreads();
  return far;
}

}  // namespace icd::cuda
