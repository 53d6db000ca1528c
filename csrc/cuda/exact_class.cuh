// The class Gram of one cell, (z_s, z_t) -> (KL, gradient by z_s): exact for any logits, K² exponentials for each network,
// twice that above kChunk classes. Nothing of size K² is stored. Row k of z zᵀ/τ is x z with x = z_k/τ, so its maximum is
// x·max(z) or x·min(z). A warp takes whole rows; its lanes hold a chunk of the columns in registers, and their column sums
// too.
#pragma once

#include "block.cuh"

namespace icd::cuda {

constexpr int kLaneColumns = 8;
constexpr int kChunk = kLaneColumns * kWarp;
constexpr int kClassRowStatistics = 3;

static_assert(kChunk == kThreads);

template <typename T>
struct ExactShared {
  T columns[kWarps][kChunk];
  double parts[kWarps];
};

template <typename T>
struct RankOne {
  const T* z;  // [K]
  T low, high;

  ICD_DEVICE RankOne(const T* logits, int64_t classes) : z(logits), low(logits[0]), high(logits[0]) {
    for (int64_t k = lane(); k < classes; k += kWarp) {
      low = z[k] < low ? z[k] : low;
      high = z[k] > high ? z[k] : high;
    }
    low = least_lanes(low);
    high = most_lanes(high);
  }
  // The z at which x z is largest.
  ICD_DEVICE T top(T x) const { return x < T(0) ? low : high; }
  ICD_DEVICE T size() const { return -low > high ? -low : high; }
};

// max|s - t|, by a warp.
template <typename T>
ICD_DEVICE T difference_of(const T* student, const T* teacher, int64_t classes) {
  T difference = 0;
  for (int64_t k = lane(); k < classes; k += kWarp) {
    const T d = std::fabs(student[k] - teacher[k]);
    difference = d > difference ? d : difference;
  }
  return most_lanes(difference);
}

// What makes row k's exponentials probabilities.
template <typename T>
struct RowShares {
  T student, teacher, log_ratio;

  static ICD_DEVICE RowShares of_sums(T student_sum, T teacher_sum) {
    const T teacher = T(1) / teacher_sum;
    return {T(1) / student_sum, teacher, std::log(student_sum * teacher)};
  }
};

// row_statistics[k] of the rows that this warp takes, where a row is longer than a chunk.
template <typename T>
ICD_DEVICE void class_row_shares(
    const RankOne<T>& student, const RankOne<T>& teacher, int64_t classes, T inverse_temperature, T* row_statistics) {
  for (int64_t k = warp(); k < classes; k += kWarps) {
    const T s_x = student.z[k] * inverse_temperature, t_x = teacher.z[k] * inverse_temperature;
    const T s_top = student.top(s_x), t_top = teacher.top(t_x);
    T s_sum = 0, t_sum = 0;
#pragma unroll 4
    for (int64_t j = lane(); j < classes; j += kWarp) {
      s_sum += exp_nonpositive(s_x * (student.z[j] - s_top));
      t_sum += exp_nonpositive(t_x * (teacher.z[j] - t_top));
    }
    const RowShares<T> shares = RowShares<T>::of_sums(sum_lanes(s_sum), sum_lanes(t_sum));
    if (lane() == 0) {
      row_statistics[k * kClassRowStatistics] = shares.student;
      row_statistics[k * kClassRowStatistics + 1] = shares.teacher;
      row_statistics[k * kClassRowStatistics + 2] = shares.log_ratio;
    }
  }
}

// One lane's columns of a chunk.
template <typename T>
struct LaneColumns {
  T student[kLaneColumns], teacher[kLaneColumns];  // z
  T sums[kLaneColumns] = {};                       // Σ_k D_kj z_k
  int64_t first, classes;

  ICD_DEVICE LaneColumns(const T* s, const T* t, int64_t chunk, int64_t count) : first(chunk + lane()), classes(count) {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      student[c] = valid(c) ? s[first + c * kWarp] : s[0];
      teacher[c] = valid(c) ? t[first + c * kWarp] : t[0];
    }
  }
  ICD_DEVICE bool valid(int c) const { return first + c * kWarp < classes; }

  // Row k: returns these columns' part of the row's KL, adds to the column sums, gives Σ_j D_kj z_j of the whole chunk.
  template <bool kGradient>
  ICD_DEVICE T add_row(
      T z_k, T s_x, T t_x, T s_top, T t_top, const T* row_statistics, T& row_sum) {
    T s_exp[kLaneColumns], t_exp[kLaneColumns], s_sum = 0, t_sum = 0;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      s_exp[c] = valid(c) ? exp_nonpositive(s_x * (student[c] - s_top)) : T(0);
      t_exp[c] = valid(c) ? exp_nonpositive(t_x * (teacher[c] - t_top)) : T(0);
      s_sum += s_exp[c];
      t_sum += t_exp[c];
    }
    const RowShares<T> shares = row_statistics != nullptr
        ? RowShares<T>{row_statistics[0], row_statistics[1], row_statistics[2]}
        : RowShares<T>::of_sums(sum_lanes(s_sum), sum_lanes(t_sum));
    T kl = 0, sum = 0;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const T q = s_exp[c] * shares.student, p = t_exp[c] * shares.teacher;
      const T log_q_over_p = s_x * (student[c] - s_top) - t_x * (teacher[c] - t_top) - shares.log_ratio;
      kl += valid(c) ? kl_term(p, q, log_q_over_p) : T(0);
      if (kGradient) {
        sum += (q - p) * student[c];
        sums[c] += (q - p) * z_k;
      }
    }
    if (kGradient) row_sum = sum_lanes(sum);
    return kl;
  }

  // grad[j] += every warp's sums of column j, for the columns of the chunk, of which there are as many as threads.
  ICD_DEVICE void add_sums(int64_t chunk, T* grad, ExactShared<T>& shared) const {
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) shared.columns[warp()][c * kWarp + lane()] = sums[c];
    __syncthreads();
    const int64_t j = chunk + threadIdx.x;
    if (j < classes) {
      T sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared.columns[w][threadIdx.x];
      grad[j] += sum;
    }
    __syncthreads();
  }
};

// The KL summed over the K rows, in thread 0. grad: [K], D z + Dᵀ z. row_statistics: [K, 3], used above kChunk classes.
template <bool kGradient, typename T>
ICD_DEVICE double exact_class(
    const T* student_row, const T* teacher_row, int64_t classes, T temperature, T* row_statistics, T* grad,
    ExactShared<T>& shared) {
  const T inverse_temperature = T(1) / temperature;
  const RankOne<T> student(student_row, classes), teacher(teacher_row, classes);
  const bool one_chunk = classes <= kChunk;
  if (!one_chunk) {
    class_row_shares(student, teacher, classes, inverse_temperature, row_statistics);
    __syncwarp();
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < classes; chunk += kChunk) {
    LaneColumns<T> columns(student_row, teacher_row, chunk, classes);
    for (int64_t k = warp(); k < classes; k += kWarps) {
      const T s_x = student.z[k] * inverse_temperature, t_x = teacher.z[k] * inverse_temperature;
      T row_sum = 0;
      total += static_cast<double>(columns.template add_row<kGradient>(
          student.z[k], s_x, t_x, student.top(s_x), teacher.top(t_x),
          one_chunk ? nullptr : row_statistics + k * kClassRowStatistics, row_sum));
      if (kGradient && lane() == 0) grad[k] = chunk == 0 ? row_sum : grad[k] + row_sum;
    }
    if constexpr (kGradient) columns.add_sums(chunk, grad, shared);
  }
  return sum_block(total, shared.parts);
}

}  // namespace icd::cuda
