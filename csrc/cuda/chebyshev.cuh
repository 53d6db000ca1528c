// A block interpolates sums: values at Chebyshev nodes become coefficients, and these the sums at any point. Everything
// here is float64, because the sums range from 1 to K and a rounding at the large end shows at the small one.
#pragma once

#include "../common/chebyshev.h"
#include "block.cuh"

namespace icd::cuda {

constexpr int kInterpolated = 3;  // most functions of one variable that are interpolated side by side

// Sums on two intervals, piece by piece: the rows of either sign, or the columns of either network.
struct Pieces {
  Interval intervals[2];
  int nodes[2];  // multiples of kNodeStep, together at most kMostNodes; 0: this piece is not interpolated

  ICD_DEVICE int total() const { return nodes[0] + nodes[1]; }
  ICD_DEVICE int piece_of(int node) const { return node >= nodes[0]; }
  ICD_DEVICE int first(int piece) const { return piece == 0 ? 0 : nodes[0]; }
};

struct InterpolationShared {
  double values[kInterpolated][kMostNodes];
  double coefficients[kInterpolated][kMostNodes];
  double cosines[kMostNodes + 2];  // of each piece: cos(m π/(2 p)), m = 0..p
};

// chebyshev_nodes(span, error), the same in every lane: the warp tries kWarp counts at a time.
ICD_DEVICE int64_t nodes_by_warp(double span, double error) {
  constexpr int64_t kTooMany = kMostNodes + 1;
  const double a = span / 2;
  if (is_wide(a)) return 0;
  if (is_narrow(a)) return kNodeStep;
  for (int64_t first = fewest_nodes(a, error); first <= kMostNodes; first += kWarp * kNodeStep) {
    const int64_t n = first + lane() * kNodeStep;
    const int64_t least = least_lanes(n <= kMostNodes && nodes_suffice(n, a, error) ? n : kTooMany);
    if (least < kTooMany) return least;
  }
  return 0;
}

ICD_DEVICE void fill_cosines(const Pieces& pieces, InterpolationShared& shared) {
  for (int piece = 0; piece < 2; ++piece) {
    const int p = pieces.nodes[piece];
    double* cosines = shared.cosines + pieces.first(piece) + piece;
    for (int m = threadIdx.x; p != 0 && m <= p; m += kThreads) cosines[m] = cospi(m / (2.0 * p));
  }
}

// cos(m π/(2 p)), 0 <= m < 4 p
ICD_DEVICE double cosine(const double* cosines, int p, int m) {
  const int folded = m > 2 * p ? 4 * p - m : m;
  return folded > p ? -cosines[2 * p - folded] : cosines[folded];
}

// The place of a node, numbered piece by piece.
ICD_DEVICE double node_place(const Pieces& pieces, const InterpolationShared& shared, int node) {
  const int piece = pieces.piece_of(node), first = pieces.first(piece);
  return point_at(
      pieces.intervals[piece], cosine(shared.cosines + first + piece, pieces.nodes[piece], 2 * (node - first) + 1));
}

// coefficients[f] of values[f]: c_n = 2/p Σ_i values_i cos(n (2 i + 1) π/(2 p)), half that for n = 0.
template <int kFunctions>
ICD_DEVICE void take_coefficients(const Pieces& pieces, InterpolationShared& shared) {
  const int total = pieces.total();
  for (int place = threadIdx.x; place < kFunctions * total; place += kThreads) {
    const int f = place / total, node = place % total;
    const int piece = pieces.piece_of(node), first = pieces.first(piece), n = node - first, p = pieces.nodes[piece];
    const double* cosines = shared.cosines + first + piece;
    double sum = 0;
    for (int i = 0, m = n; i < p; ++i) {
      sum += shared.values[f][first + i] * cosine(cosines, p, m);
      m += 2 * n;
      if (m >= 4 * p) m -= 4 * p;
    }
    shared.coefficients[f][node] = sum * (n == 0 ? 1.0 : 2.0) / p;
  }
}

// sums[f] = Σ_n coefficients[f]_n T_n at a point of the piece's interval.
template <int kFunctions>
ICD_DEVICE void interpolate(
    const Pieces& pieces, int piece, double point, const InterpolationShared& shared, double (&sums)[kFunctions]) {
  const Interval& interval = pieces.intervals[piece];
  // Equal points have an interval of no length, where the sum is a constant.
  const double u = interval.half > 0 ? (point - interval.middle) / interval.half : 0.0;
  const int first = pieces.first(piece), p = pieces.nodes[piece];
  double before = u, now = 1;  // T_{-1} = T_1
#pragma unroll
  for (int f = 0; f < kFunctions; ++f) sums[f] = 0;
  for (int n = 0; n < p; ++n) {
#pragma unroll
    for (int f = 0; f < kFunctions; ++f) sums[f] += shared.coefficients[f][first + n] * now;
    const double next = 2 * u * now - before;
    before = now;
    now = next;
  }
}

// The warp's sums of four values: that of values[i] in lanes 8 i to 8 i + 7. A step halves what a lane still adds up.
ICD_DEVICE double sum_four(const double (&values)[4]) {
  const bool upper = lane() & 16, odd = lane() & 8;
  double pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    pair[i] = (upper ? values[i + 2] : values[i]) +
        __shfl_xor_sync(kAllLanes, upper ? values[i] : values[i + 2], 16);
  }
  const double one = (odd ? pair[1] : pair[0]) + __shfl_xor_sync(kAllLanes, odd ? pair[0] : pair[1], 8);
  return sum_lanes(one, 8);
}

}  // namespace icd::cuda
