// The class Gram's sums in time linear in K: docs/linear_class_gram.md.
// Included once for each instruction set, inside its namespace (kernels_table.h).
//
// With x = z/temperature and y = z, everything the class form needs is sums over j of f_j exp(x (y_j - top)) at K points
// x. On one sign of x, top is max(y) or min(y) and such a sum is a polynomial in x to rounding: it is evaluated at p
// Chebyshev nodes and interpolated. A is the type of the exponentials, T that of the logits; nodes, coefficients and
// interpolation are float64, because the sums range from 1 to K and a rounding at the large end shows at the small one.

constexpr int64_t kEvaluated = 32;  // points that are evaluated side by side
constexpr int kNodesAtOnce = 2;     // nodes whose exponentials share one read of the logits

// Values of kFunctions functions at the p Chebyshev nodes of the first kind, [kFunctions, p] -> coefficients, in place.
// work: 3 p and kFunctions p
template <int kFunctions>
inline void chebyshev_coefficients(double* values, const double* nodes, int64_t p, double* work) {
  double *before = work, *now = work + p, *twice = work + 2 * p, *result = work + 3 * p;
  for (int64_t i = 0; i < p; ++i) {
    before[i] = nodes[i];  // T_{-1} = T_1
    now[i] = 1;
    twice[i] = 2 * nodes[i];
  }
  for (int64_t n = 0; n < p; ++n) {
    double sums[kFunctions] = {};
    for (int f = 0; f < kFunctions; ++f) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < p; ++i) sum += values[f * p + i] * now[i];
      sums[f] = sum;
    }
#pragma omp simd
    for (int64_t i = 0; i < p; ++i) {
      const double next = twice[i] * now[i] - before[i];
      before[i] = now[i];
      now[i] = next;
    }
    for (int f = 0; f < kFunctions; ++f) result[f * p + n] = sums[f] * (n == 0 ? 1.0 : 2.0) / static_cast<double>(p);
  }
  for (int64_t n = 0; n < kFunctions * p; ++n) values[n] = result[n];
}

// Nodes on [-1, 1].
inline void chebyshev_points(double* nodes, int64_t p) {
  const double step = 3.14159265358979323846 / static_cast<double>(p);
  for (int64_t i = 0; i < p; ++i) nodes[i] = std::cos((static_cast<double>(i) + 0.5) * step);
}

// out[f · out_stride + k] = the f-th polynomial at points[k]; coefficients: [kFunctions, p].
template <int kFunctions, typename A>
inline void evaluate(
    const double* coefficients, int64_t p, const Interval& interval, const A* points, int64_t count, double* out,
    int64_t out_stride) {
  // An interval this short (equal points, or logits near the smallest number) holds a constant: its middle serves.
  const double inverse_half = interval.half > 1e-300 ? 1 / interval.half : 0;
  for (int64_t first = 0; first < count; first += kEvaluated) {
    const int64_t block = count - first < kEvaluated ? count - first : kEvaluated;
    double twice[kEvaluated], before[kEvaluated], now[kEvaluated], sums[kFunctions][kEvaluated] = {};
    for (int64_t k = 0; k < kEvaluated; ++k) {
      const double point = static_cast<double>(points[first + (k < block ? k : 0)]);
      before[k] = (point - interval.middle) * inverse_half;
      twice[k] = 2 * before[k];
      now[k] = 1;
    }
    for (int64_t n = 0; n < p; ++n) {
#pragma omp simd
      for (int64_t k = 0; k < kEvaluated; ++k) {
        for (int f = 0; f < kFunctions; ++f) sums[f][k] += coefficients[f * p + n] * now[k];
        const double next = twice[k] * now[k] - before[k];
        before[k] = now[k];
        now[k] = next;
      }
    }
    for (int f = 0; f < kFunctions; ++f) {
      for (int64_t k = 0; k < block; ++k) out[f * out_stride + first + k] = sums[f][k];
    }
  }
}

// Sums over j of e_j, e_j (y_j - top) and, with three functions, e_j other_j, e_j = exp(x (y_j - top)) <= 1, at
// kNodesAtOnce points x.
template <int kFunctions, typename A>
inline void row_sums_at(
    const A* y, const A* other, int64_t count, const A* x, A top, double sums[kNodesAtOnce][kFunctions]) {
  for (int i = 0; i < kNodesAtOnce; ++i) {
    for (int f = 0; f < kFunctions; ++f) sums[i][f] = 0;
  }
  const A first_x = x[0], second_x = x[1];
  for (int64_t first = 0; first < count; first += kFlush) {
    const int64_t last = count - first < kFlush ? count : first + kFlush;
    A one = 0, shifted = 0, others = 0, second_one = 0, second_shifted = 0, second_others = 0;
#pragma omp simd reduction(+ : one, shifted, others, second_one, second_shifted, second_others)
    for (int64_t j = first; j < last; ++j) {
      const A below = y[j] - top;
      const A e = exp_nonpositive(first_x * below), second = exp_nonpositive(second_x * below);
      one += e;
      shifted += e * below;
      second_one += second;
      second_shifted += second * below;
      if (kFunctions == 3) {
        others += e * other[j];
        second_others += second * other[j];
      }
    }
    const A found[kNodesAtOnce][3] = {{one, shifted, others}, {second_one, second_shifted, second_others}};
    for (int i = 0; i < kNodesAtOnce; ++i) {
      for (int f = 0; f < kFunctions; ++f) sums[i][f] += static_cast<double>(found[i][f]);
    }
  }
}

// Σ_k w_k exp(x_k (y - top)) at kNodesAtOnce places y: what column j = the class with logit y collects, where w_k is a
// weight over the row's sum S_k. Every exponential is at most 1, and so is its share of S_k.
template <typename A>
inline void column_sums_at(const A* x, const A* w, int64_t count, const A* below, double sums[kNodesAtOnce]) {
  const A first_below = below[0], second_below = below[1];
  for (int64_t first = 0; first < count; first += kFlush) {
    const int64_t last = count - first < kFlush ? count : first + kFlush;
    A sum = 0, second = 0;
#pragma omp simd reduction(+ : sum, second)
    for (int64_t k = first; k < last; ++k) {
      sum += w[k] * exp_nonpositive(x[k] * first_below);
      second += w[k] * exp_nonpositive(x[k] * second_below);
    }
    sums[0] += static_cast<double>(sum);
    sums[1] += static_cast<double>(second);
  }
}

// One network's logits of one cell, its points x grouped by sign: first those >= 0, then the others.
template <typename A>
struct SignedPoints {
  A* y;            // [K], in class order
  A* x;            // [K], grouped
  int64_t* order;  // [K], the class of a grouped point
  int64_t count[2];
  A top[2];  // the y of each side's largest row entry
  Interval interval[2];
  int64_t nodes[2];  // 0: the side's points are summed one by one
  double low, high;  // of y
  int64_t column_nodes;

  template <typename T>
  void load(const T* row, int64_t classes, T temperature) {
    T least, most;
    extremes(row, classes, least, most);
    low = static_cast<double>(least);
    high = static_cast<double>(most);
    top[0] = static_cast<A>(most);
    top[1] = static_cast<A>(least);
    count[0] = count[1] = 0;
    for (int64_t k = 0; k < classes; ++k) count[row[k] < T(0)] += 1;
    int64_t next[2] = {0, count[0]};
    const A inverse_temperature = A(1) / static_cast<A>(temperature);
    for (int64_t k = 0; k < classes; ++k) {
      const int64_t place = next[row[k] < T(0)]++;
      y[k] = static_cast<A>(row[k]);
      x[place] = y[k] * inverse_temperature;
      order[place] = k;
    }
  }

  // Chooses the nodes of both sides and of the columns; false where a span is too wide or not a number.
  bool plan(int64_t classes, double error) {
    double widest = 0;
    for (int side = 0; side < 2; ++side) {
      const A* points = x + (side == 0 ? 0 : count[0]);
      nodes[side] = 0;
      if (count[side] == 0) continue;
      A least, most;
      extremes(points, count[side], least, most);
      const double first = static_cast<double>(least), last = static_cast<double>(most);
      interval[side] = {(first + last) / 2, (last - first) / 2};
      widest = std::fmax(widest, std::fmax(std::fabs(first), std::fabs(last)));
      const int64_t needed = chebyshev_nodes((last - first) * (high - low), error);
      if (needed == 0) return false;
      nodes[side] = needed < count[side] && last > first ? needed : 0;
    }
    column_nodes = chebyshev_nodes(widest * (high - low), error);
    return column_nodes != 0 && column_nodes < classes && high > low;
  }

  // How many passes over K points the plan takes.
  int64_t passes() const {
    int64_t total = column_nodes;
    for (int side = 0; side < 2; ++side) total += nodes[side] == 0 ? count[side] : nodes[side];
    return total;
  }
};

// Scratch of one cell, handed out piece by piece, every piece on a cache line.
struct Arena {
  char* next;

  template <typename Item>
  Item* take(int64_t count) {
    Item* piece = reinterpret_cast<Item*>(next);
    next += (count * static_cast<int64_t>(sizeof(Item)) + 63) / 64 * 64;
    return piece;
  }
};

// Bytes of scratch: the largest need, with exponentials in float64.
inline int64_t linear_scratch_bytes(int64_t classes) { return (26 * classes + 10 * kMostNodes + 512) * 8; }

template <typename A>
struct LinearCell {
  SignedPoints<A> student, teacher;
  double* row_sums;  // [3, K] of one network, grouped
  double* nodes;     // [p]
  double* values;    // [3, p]
  double* work;      // [6 p]

  LinearCell(Arena& arena, int64_t classes) {
    for (SignedPoints<A>* network : {&student, &teacher}) {
      network->y = arena.take<A>(classes);
      network->x = arena.take<A>(classes);
      network->order = arena.take<int64_t>(classes);
    }
    row_sums = arena.take<double>(3 * classes);
    nodes = arena.take<double>(kMostNodes);
    values = arena.take<double>(3 * kMostNodes);
    work = arena.take<double>(6 * kMostNodes);
  }

  // row_sums of one network at all its points, grouped; `other` is in class order.
  template <int kFunctions>
  void sum_rows(const SignedPoints<A>& network, const A* other, int64_t classes) {
    int64_t first = 0;
    for (int side = 0; side < 2; ++side) {
      const int64_t count = network.count[side], p = network.nodes[side];
      const A* points = network.x + first;
      const A top = network.top[side];
      double sums[kNodesAtOnce][kFunctions];
      if (p == 0) {
        for (int64_t k = 0; k < count; k += kNodesAtOnce) {
          const int64_t last = k + 1 < count ? k + 1 : k;
          const A pair[kNodesAtOnce] = {points[k], points[last]};
          row_sums_at<kFunctions>(network.y, other, classes, pair, top, sums);
          for (int f = 0; f < kFunctions; ++f) {
            row_sums[f * classes + first + k] = sums[0][f];
            row_sums[f * classes + first + last] = sums[last - k][f];
          }
        }
      } else {
        chebyshev_points(nodes, p);
        for (int64_t i = 0; i < p; i += kNodesAtOnce) {
          A pair[kNodesAtOnce];
          for (int n = 0; n < kNodesAtOnce; ++n) pair[n] = static_cast<A>(point_at(network.interval[side], nodes[i + n]));
          row_sums_at<kFunctions>(network.y, other, classes, pair, top, sums);
          for (int n = 0; n < kNodesAtOnce; ++n) {
            for (int f = 0; f < kFunctions; ++f) values[f * p + i + n] = sums[n][f];
          }
        }
        chebyshev_coefficients<kFunctions>(values, nodes, p, work);
        evaluate<kFunctions>(values, p, network.interval[side], points, count, row_sums + first, classes);
      }
      first += count;
    }
  }

  // out[j] = Σ_k w_k exp(x_k (y_j - top)) of one network, in class order; w is grouped.
  void sum_columns(const SignedPoints<A>& network, const A* w, int64_t classes, double* out) {
    const int64_t p = network.column_nodes, positive = network.count[0];
    const Interval interval = {(network.low + network.high) / 2, (network.high - network.low) / 2};
    chebyshev_points(nodes, p);
    for (int64_t i = 0; i < p; i += kNodesAtOnce) {
      A below[kNodesAtOnce], above[kNodesAtOnce];
      double sums[kNodesAtOnce] = {};
      for (int n = 0; n < kNodesAtOnce; ++n) {
        const double y = point_at(interval, nodes[i + n]);
        below[n] = static_cast<A>(y - static_cast<double>(network.top[0]));
        above[n] = static_cast<A>(y - static_cast<double>(network.top[1]));
      }
      column_sums_at(network.x, w, positive, below, sums);
      column_sums_at(network.x + positive, w + positive, network.count[1], above, sums);
      for (int n = 0; n < kNodesAtOnce; ++n) values[i + n] = sums[n];
    }
    chebyshev_coefficients<1>(values, nodes, p, work);
    evaluate<1>(values, p, interval, network.y, classes, out, classes);
  }
};
static_assert(kNodeStep % kNodesAtOnce == 0, "nodes come in whole groups");

// What a row of one network's Gram is known by, in class order.
struct RowMoments {
  double* sum;         // S = Σ exp(x (y_j - top))
  double* own_mean;    // Σ p_j (y_j - top)
  double* other_mean;  // Σ p_j other_j; with two functions, of the network's own y

  RowMoments(Arena& arena, int64_t classes)
      : sum(arena.take<double>(classes)),
        own_mean(arena.take<double>(classes)),
        other_mean(arena.take<double>(classes)) {}
};

// Also writes `weights` [K], grouped: what each class's `other` counts in the columns, other over the row's sum.
template <int kFunctions, typename A>
inline void moments_of(
    LinearCell<A>& cell, const SignedPoints<A>& network, const A* other, int64_t classes, const RowMoments& moments,
    A* weights) {
  cell.template sum_rows<kFunctions>(network, other, classes);
  for (int64_t place = 0; place < classes; ++place) {
    const int64_t k = network.order[place];
    const double inverse = 1 / cell.row_sums[place];
    moments.sum[k] = cell.row_sums[place];
    moments.own_mean[k] = cell.row_sums[classes + place] * inverse;
    moments.other_mean[k] = kFunctions == 3
        ? cell.row_sums[2 * classes + place] * inverse
        : moments.own_mean[k] + static_cast<double>(network.top[place >= network.count[0]]);
    weights[place] = static_cast<A>(static_cast<double>(other[k]) * inverse);
  }
}

// Σ_k log(above_k / below_k), one logarithm for many: each ratio lies within 1/K and K.
inline double sum_of_log_ratios(const double* above, const double* below, int64_t count) {
  constexpr int64_t kTogether = 32;
  double total = 0;
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t last = count - first < kTogether ? count : first + kTogether;
    double product = 1;
    for (int64_t k = first; k < last; ++k) product *= above[k] / below[k];
    total += std::log(product);
  }
  return total;
}

// The KL of all rows and, with kGradient, the gradient, by interpolation. `cell` is loaded and planned.
template <bool kGradient, typename A, typename T>
double linear_cell(LinearCell<A>& cell, Arena arena, int64_t classes, T temperature, T weight, T* grad) {
  const SignedPoints<A>&student = cell.student, &teacher = cell.teacher;
  const RowMoments q(arena, classes), p(arena, classes);
  A* student_weights = arena.take<A>(classes);
  A* teacher_weights = arena.take<A>(classes);
  moments_of<2>(cell, student, student.y, classes, q, student_weights);
  moments_of<3>(cell, teacher, student.y, classes, p, teacher_weights);

  double total = sum_of_log_ratios(q.sum, p.sum, classes);
  const double inverse_temperature = 1 / static_cast<double>(temperature);
  for (int64_t k = 0; k < classes; ++k) {
    const double s = static_cast<double>(student.y[k]), t = static_cast<double>(teacher.y[k]);
    const double student_top = static_cast<double>(student.top[s < 0]);
    total += row_kl(s, t, inverse_temperature, p.own_mean[k], p.other_mean[k], student_top, 0.0);
  }
  if (kGradient) {
    double* student_columns = arena.take<double>(classes);
    double* teacher_columns = arena.take<double>(classes);
    cell.sum_columns(student, student_weights, classes, student_columns);
    cell.sum_columns(teacher, teacher_weights, classes, teacher_columns);
    const double scale = static_cast<double>(weight) * inverse_temperature;
    for (int64_t k = 0; k < classes; ++k) {
      const double row = q.other_mean[k] - p.other_mean[k];
      grad[k] = static_cast<T>((row + (student_columns[k] - teacher_columns[k])) * scale);
    }
  }
  return total;
}

// What one pass of the plan costs, in rows of the exact sum, both over K points (measured): of the sum with shifted rows; of
// the one without shifts, by passes in float32 and in float64; and by those in float64 of that sum where it also takes the
// small terms of close rows one by one.
constexpr double kPassCost = 0.75, kPassCostSymmetric = 1.7, kDoublePassCostSymmetric = 2.9, kDoublePassCostClose = 1.5;

// Loads and plans a cell; false where the exact sum is the better or the only way.
template <typename A, typename T>
inline bool plan_linear(
    LinearCell<A>& cell, const CellSize& size, const T* student, const T* teacher, int64_t classes, T temperature,
    bool whatever_it_costs) {
  cell.student.load(student, classes, temperature);
  cell.teacher.load(teacher, classes, temperature);
  const double error = exponential_error<A>(classes);
  if (!cell.student.plan(classes, error) || !cell.teacher.plan(classes, error)) return false;
  const double passes = static_cast<double>(cell.student.passes() + cell.teacher.passes());
  const double cost = !size.is_symmetric(classes)    ? kPassCost
      : sizeof(A) == sizeof(T)                       ? kPassCostSymmetric
      : size.divergence < size.close_rows()          ? kDoublePassCostClose
                                                     : kDoublePassCostSymmetric;
  return whatever_it_costs || passes * cost < static_cast<double>(classes);
}

// Tries the linear sums for one cell; false where it is left to the exact sum.
template <bool kGradient, typename A, typename T>
bool try_linear(
    const CellSize& size, const T* student, const T* teacher, int64_t classes, T temperature, T weight, T* grad,
    void* scratch, T& loss, bool whatever_it_costs) {
  if (sizeof(A) == 4 && (size.divergence < kCloseRows || size.surely_close)) {
    return try_linear<kGradient, double>(
        size, student, teacher, classes, temperature, weight, grad, scratch, loss, whatever_it_costs);
  }
  Arena arena = {static_cast<char*>(scratch)};
  LinearCell<A> cell(arena, classes);
  if (!plan_linear(cell, size, student, teacher, classes, temperature, whatever_it_costs)) return false;
  const double total = linear_cell<kGradient>(cell, arena, classes, temperature, weight, grad);
  if (sizeof(A) == 4 && total < kCloseRows * static_cast<double>(classes)) {
    return try_linear<kGradient, double>(
        size, student, teacher, classes, temperature, weight, grad, scratch, loss, whatever_it_costs);
  }
  loss = static_cast<T>(total);
  return true;
}
