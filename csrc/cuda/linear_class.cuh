// The class Gram of one cell in time linear in K: docs/linear_class_gram.md. All it needs are sums over j of
// f_j exp(x (y_j - top)) at K points x; on one sign of x these are polynomials in x to rounding. A block takes each at a
// few Chebyshev nodes, a warp four nodes at a time, and interpolates. A is the type of the exponentials, T that of the
// logits.
#pragma once

#include <limits>

#include "../common/class_rows.h"
#include "chebyshev.cuh"
#include "exact_class.cuh"

namespace icd::cuda {

template <typename T>
constexpr T kLargest = std::numeric_limits<T>::max();

constexpr int kAtOnce = static_cast<int>(kNodeStep);  // nodes that share a read of the logits
constexpr int kFlush = 32;                            // terms that a lane adds in A before it goes on in float64
constexpr double kCloseRowsOfSpan = 1e-3;             // of the spans: see close_rows
constexpr int kStudentSums = 2, kTeacherSums = 3;     // of a row: e, e (y - top); e s

// One network's logits as the sums need them.
template <typename T>
struct Extent {
  T low, high;
  T inner[2];        // the least z >= 0 and the greatest z < 0
  int64_t count[2];  // of either sign

  // The z at which a row of either sign is largest.
  ICD_DEVICE T top(int side) const { return side == 0 ? high : low; }
  ICD_DEVICE T size() const { return -low > high ? -low : high; }
};

// By a warp.
template <typename T>
ICD_DEVICE Extent<T> extent_of(const T* z, int64_t classes) {
  T low = z[0], high = z[0], least = kLargest<T>, greatest = -kLargest<T>;
  int negative = 0;
  for (int64_t k = lane(); k < classes; k += kWarp) {
    const T value = z[k];
    low = value < low ? value : low;
    high = value > high ? value : high;
    least = value >= T(0) && value < least ? value : least;
    greatest = value < T(0) && value > greatest ? value : greatest;
    negative += value < T(0);
  }
  const int64_t below_zero = sum_lanes(negative);
  return {
      least_lanes(low), most_lanes(high), {least_lanes(least), most_lanes(greatest)}, {classes - below_zero, below_zero}};
}

// Adds term(j, sums) for this lane's logits j: kFlush terms in A, for a long sum would round more, then in float64.
template <typename A, int kSums, int kPoints, typename Term>
ICD_DEVICE void add_lanes(int64_t classes, double (&sums)[kSums][kPoints], Term term) {
  if constexpr (sizeof(A) == sizeof(double)) {
    for (int64_t j = lane(); j < classes; j += kWarp) term(j, sums);
  } else {
    for (int64_t begin = lane(); begin < classes; begin += kFlush * kWarp) {
      const int64_t end = begin + kFlush * kWarp < classes ? begin + kFlush * kWarp : classes;
      A parts[kSums][kPoints] = {};
      for (int64_t j = begin; j < end; j += kWarp) term(j, parts);
#pragma unroll
      for (int f = 0; f < kSums; ++f) {
#pragma unroll
        for (int i = 0; i < kPoints; ++i) sums[f][i] += static_cast<double>(parts[f][i]);
      }
    }
  }
}

// How a cell's sums are taken.
struct LinearPlan {
  Pieces rows[2];  // student's and teacher's, by the sign of x; a side of 0 nodes is summed row by row
  Pieces columns;  // student's and teacher's
  bool possible;
};

template <typename T>
struct LinearShared {
  InterpolationShared interpolation;
  Extent<T> extents[2];  // student's and teacher's
  T difference;
  int64_t needed[2][3];  // nodes of each network's sides and of its columns
  LinearPlan plan;
  double parts[kWarps];

  ICD_DEVICE void measure(const T* student, const T* teacher, int64_t classes) {
    if (warp() == 0) {
      const Extent<T> extent = extent_of(student, classes);
      if (lane() == 0) extents[0] = extent;
    } else if (warp() == 1) {
      const Extent<T> extent = extent_of(teacher, classes);
      if (lane() == 0) extents[1] = extent;
    } else if (warp() == 2) {
      const T most = difference_of(student, teacher, classes);
      if (lane() == 0) difference = most;
    }
    __syncthreads();
  }
};

// One cell, and the memory its sums are kept in.
template <typename A, typename T>
struct LinearCell {
  const T *student, *teacher;  // [K]
  int64_t classes;
  A inverse_temperature;
  double *student_log_sums, *teacher_log_sums;  // [K], of the rows: log Σ exp(x (y_j - top))
  double* student_means;                        // [K], Σ q_j s_j
  T* grad;                                      // [K] or null
  LinearShared<T>& shared;

  ICD_DEVICE const T* logits(int net) const { return net == 0 ? student : teacher; }
  ICD_DEVICE const Extent<T>& extent(int net) const { return shared.extents[net]; }
  ICD_DEVICE A row_factor(T z) const { return static_cast<A>(z) * inverse_temperature; }

  // Of the points x of one sign.
  ICD_DEVICE Interval row_interval(int net, int side) const {
    const double outer = static_cast<double>(row_factor(extent(net).top(side)));
    const double inner = static_cast<double>(row_factor(extent(net).inner[side]));
    return {(outer + inner) / 2, std::fabs(outer - inner) / 2};
  }
  ICD_DEVICE Interval column_interval(int net) const {
    const double low = static_cast<double>(extent(net).low), high = static_cast<double>(extent(net).high);
    return {(low + high) / 2, (high - low) / 2};
  }

  // The widest spans there can be are reach · spread.
  ICD_DEVICE double reach(int net) const { return static_cast<double>(row_factor(extent(net).size())); }
  ICD_DEVICE double spread(int net) const { return 2 * column_interval(net).half; }

  // A mean row KL below this needs float64: a row's noise grows with its span.
  ICD_DEVICE double close_rows() const {
    const double by_span = kCloseRowsOfSpan * (reach(0) * spread(0) + reach(1) * spread(1));
    return by_span > kCloseRows ? by_span : kCloseRows;
  }

  // Chooses the nodes of all sums. False where a span is too wide or not a number, or where the passes over K logits are
  // not fewer than `most_passes`.
  ICD_DEVICE bool plan(double most_passes) {
    constexpr int kPlans = 6;
    for (int i = warp(); i < kPlans; i += kWarps) {
      const int net = i / 3, part = i % 3;
      const double width = part == 2         ? reach(net)
          : extent(net).count[part] == 0 ? 0.0
                                         : 2 * row_interval(net, part).half;
      const int64_t needed = nodes_by_warp(width * spread(net), exponential_error<A>(classes));
      if (lane() == 0) shared.needed[net][part] = needed;
    }
    __syncthreads();
    if (threadIdx.x == 0) decide(most_passes);
    __syncthreads();
    const bool possible = shared.plan.possible;
    __syncthreads();
    return possible;
  }

  // By one thread.
  ICD_DEVICE void decide(double most_passes) const {
    LinearPlan& plan = shared.plan;
    int64_t passes = 0;
    bool possible = true;
    for (int net = 0; net < 2; ++net) {
      const int64_t(&needed)[3] = shared.needed[net];
      for (int side = 0; side < 2; ++side) {
        const int64_t count = extent(net).count[side];
        const bool interpolated = needed[side] < count;
        plan.rows[net].nodes[side] = interpolated ? static_cast<int>(needed[side]) : 0;
        plan.rows[net].intervals[side] = row_interval(net, side);
        passes += interpolated ? needed[side] : count;
        possible = possible && needed[side] != 0;
      }
      plan.columns.nodes[net] = static_cast<int>(needed[2]);
      plan.columns.intervals[net] = column_interval(net);
      passes += needed[2];
      possible = possible && needed[2] != 0 && plan.rows[net].total() <= kMostNodes;
    }
    plan.possible = possible && plan.columns.total() <= kMostNodes && static_cast<double>(passes) < most_passes;
  }

  // sums[f][i] of this lane's logits at x[i].
  template <int kSums, int kPoints>
  ICD_DEVICE void add_row(int net, const A (&x)[kPoints], int side, double (&sums)[kSums][kPoints]) const {
    const T* y = logits(net);
    const A top = static_cast<A>(extent(net).top(side));
    add_lanes<A>(classes, sums, [&](int64_t j, auto& parts) {
      const A below = static_cast<A>(y[j]) - top;
#pragma unroll
      for (int i = 0; i < kPoints; ++i) {
        const A e = exp_nonpositive(x[i] * below);
        parts[0][i] += e;
        parts[1][i] += e * below;
        if constexpr (kSums > 2) parts[2][i] += e * static_cast<A>(student[j]);
      }
    });
  }

  template <int kSums>
  ICD_DEVICE void row_values(int net) {
    const Pieces& pieces = shared.plan.rows[net];
    for (int first = warp() * kAtOnce; first < pieces.total(); first += kWarps * kAtOnce) {
      A x[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) x[i] = static_cast<A>(node_place(pieces, shared.interpolation, first + i));
      double sums[kSums][kAtOnce] = {};
      add_row(net, x, pieces.piece_of(first), sums);
#pragma unroll
      for (int f = 0; f < kSums; ++f) {
        const double sum = sum_four(sums[f]);
        if (lane() % 8 == 0) shared.interpolation.values[f][first + lane() / 8] = sum;
      }
    }
  }

  // Calls visit(k, side, sums) for every row of one network, in some thread.
  template <int kSums, typename Visit>
  ICD_DEVICE void for_each_row(int net, Visit visit) {
    const Pieces& pieces = shared.plan.rows[net];
    fill_cosines(pieces, shared.interpolation);
    __syncthreads();
    row_values<kSums>(net);
    __syncthreads();
    take_coefficients<kSums>(pieces, shared.interpolation);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < classes; k += kThreads) {
      const T z = logits(net)[k];
      const int side = z < T(0);
      if (pieces.nodes[side] == 0) continue;
      double sums[kSums];
      interpolate(pieces, side, static_cast<double>(row_factor(z)), shared.interpolation, sums);
      visit(k, side, sums);
    }
    for (int64_t k = warp(); k < classes; k += kWarps) {
      const T z = logits(net)[k];
      const int side = z < T(0);
      if (pieces.nodes[side] != 0) continue;
      const A x[1] = {row_factor(z)};
      double lanes[kSums][1] = {}, sums[kSums];
      add_row(net, x, side, lanes);
#pragma unroll
      for (int f = 0; f < kSums; ++f) sums[f] = sum_lanes(lanes[f][0]);
      if (lane() == 0) visit(k, side, sums);
    }
    __syncthreads();
  }

  // The KL of all rows, in every thread; grad[k] = Σ_j (q_kj - p_kj) s_j.
  ICD_DEVICE double rows() {
    for_each_row<kStudentSums>(0, [&](int64_t k, int side, const double (&sums)[kStudentSums]) {
      student_log_sums[k] = std::log(sums[0]);
      student_means[k] = sums[1] / sums[0] + static_cast<double>(extent(0).top(side));
    });
    double total = 0;
    for_each_row<kTeacherSums>(1, [&](int64_t k, int, const double (&sums)[kTeacherSums]) {
      const double s = static_cast<double>(student[k]), t = static_cast<double>(teacher[k]);
      const double log_sum = std::log(sums[0]), mean = sums[2] / sums[0];
      teacher_log_sums[k] = log_sum;
      total += row_kl(
          s, t, static_cast<double>(inverse_temperature), sums[1] / sums[0], mean,
          static_cast<double>(extent(0).top(s < 0)), student_log_sums[k] - log_sum);
      if (grad != nullptr) grad[k] = static_cast<T>(student_means[k] - mean);
    });
    return sum_block(total, shared.parts);
  }

  // sums[0][i] += this lane's Σ_k s_k exp(x_k (y[i] - top_k) - log_sum_k) of one network: every exponential is a
  // probability, so none overflows, where exp(x_k y) and exp(-L_k) alone would.
  ICD_DEVICE void add_columns(int net, const double (&y)[kAtOnce], double (&sums)[1][kAtOnce]) const {
    const double low = static_cast<double>(extent(net).low), high = static_cast<double>(extent(net).high);
    const double* log_sums = net == 0 ? student_log_sums : teacher_log_sums;
    A below[2][kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      below[0][i] = static_cast<A>(y[i] - high);
      below[1][i] = static_cast<A>(y[i] - low);
    }
    add_lanes<A>(classes, sums, [&](int64_t k, auto& parts) {
      const T z = logits(net)[k];
      const A x = row_factor(z), weight = static_cast<A>(student[k]), log_sum = static_cast<A>(log_sums[k]);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        parts[0][i] += weight * exp_nonpositive(x * (z < T(0) ? below[1][i] : below[0][i]) - log_sum);
      }
    });
  }

  // grad[j] += Σ_k (q_kj - p_kj) s_k, after `rows`.
  ICD_DEVICE void columns() {
    const Pieces& pieces = shared.plan.columns;
    fill_cosines(pieces, shared.interpolation);
    __syncthreads();
    for (int first = warp() * kAtOnce; first < pieces.total(); first += kWarps * kAtOnce) {
      double y[kAtOnce], sums[1][kAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) y[i] = node_place(pieces, shared.interpolation, first + i);
      add_columns(pieces.piece_of(first), y, sums);
      const double sum = sum_four(sums[0]);
      if (lane() % 8 == 0) shared.interpolation.values[0][first + lane() / 8] = sum;
    }
    __syncthreads();
    take_coefficients<1>(pieces, shared.interpolation);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < classes; k += kThreads) {
      double student_sum[1], teacher_sum[1];
      interpolate(pieces, 0, static_cast<double>(student[k]), shared.interpolation, student_sum);
      interpolate(pieces, 1, static_cast<double>(teacher[k]), shared.interpolation, teacher_sum);
      grad[k] = static_cast<T>(static_cast<double>(grad[k]) + (student_sum[0] - teacher_sum[0]));
    }
    __syncthreads();
  }
};

enum class Outcome { impossible, close, done };

// What the sums cost, in instructions of float32 for one logit: a row of the exact sum without shifts (counted in the
// machine code) or with them, and a pass of the linear one with the interpolation of its node (counted in the source). None
// is measured. float64_cost: float32 instructions that take as long as one of float64.
template <typename T>
ICD_DEVICE double exact_row_cost(bool symmetric, double float64_cost) {
  if (symmetric) return 22;
  return sizeof(T) == sizeof(double) ? 120 * float64_cost : 70;
}
template <typename A>
ICD_DEVICE double pass_cost(double float64_cost) {
  return 25 + (sizeof(A) == sizeof(double) ? 30 : 6) * float64_cost;
}

// The KL summed over the K rows and grad = D s + Dᵀ s; false, in every thread, where the exact sum is to be taken. scratch:
// [3 K]. Where the rows are close, a difference of float32 sums would leave them too few digits: float64 then.
template <typename T>
ICD_DEVICE bool linear_class(
    ClassSum sum, const T* student, const T* teacher, int64_t classes, T temperature, double float64_cost,
    bool symmetric, double* scratch, T* grad, LinearShared<T>& shared, double& loss) {
  const auto run = [&](auto type, bool close_is_seen) {
    using A = decltype(type);
    const double rows = exact_row_cost<T>(symmetric && close_is_seen, float64_cost) * static_cast<double>(classes);
    const double most_passes = sum == ClassSum::linear ? kLargest<double>
                                                       : rows / pass_cost<A>(float64_cost);
    LinearCell<A, T> cell = {
        student, teacher, classes, A(1) / static_cast<A>(temperature), scratch, scratch + classes,
        scratch + 2 * classes, grad, shared};
    if (!cell.plan(most_passes)) return Outcome::impossible;
    loss = cell.rows();
    if (close_is_seen && loss < cell.close_rows() * static_cast<double>(classes)) return Outcome::close;
    if (grad != nullptr) cell.columns();
    return Outcome::done;
  };
  shared.measure(student, teacher, classes);
  if constexpr (sizeof(T) == sizeof(float)) {
    const T sizes = shared.extents[0].size() + shared.extents[1].size();
    if (!are_close(shared.difference, sizes, temperature)) {
      const Outcome outcome = run(float(), true);
      if (outcome != Outcome::close) return outcome == Outcome::done;
    }
  }
  return run(double(), false) == Outcome::done;
}

}  // namespace icd::cuda
