// KD, DKD and NKD of rows of logits, forward and gradient in one pass (docs/objectives.md).
// Included once for each instruction set, inside its namespace (kernels_table.h).

// Stands for a logit of -inf, as in icd_kernels/objectives/classes.py: a class that this row does not have.
template <typename T>
constexpr T kMaskedLogit = static_cast<T>(-1e30);
template <typename T>
constexpr T kLeastLogit = static_cast<T>(-1e24);  // above every masked one, whatever it is divided by

// One network's row at one temperature: scaled logits, and the softmax among the classes of the mask.
template <typename T>
struct SoftRow {
  T* scaled;       // [K]
  T* exponential;  // [K], 0 outside the mask
  double top, sum;

  void load(const T* row, int64_t stride, const T* mask, T inverse_temperature, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      scaled[k] = mask[k] > T(0) ? row[k * stride] * inverse_temperature : kMaskedLogit<T>;
    }
  }
  void softmax(const T* mask, int64_t count) {
    T most = kMaskedLogit<T>;
#pragma omp simd reduction(max : most)
    for (int64_t k = 0; k < count; ++k) {
      const T value = mask[k] > T(0) ? scaled[k] : kMaskedLogit<T>;
      most = value > most ? value : most;
    }
    double total = 0;
    for (int64_t first = 0; first < count; first += kFlush) {
      const int64_t last = count - first < kFlush ? count : first + kFlush;
      T part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t k = first; k < last; ++k) {
        const T value = mask[k] > T(0) ? exp_nonpositive(scaled[k] - most) : T(0);
        exponential[k] = value;
        part += value;
      }
      total += static_cast<double>(part);
    }
    top = static_cast<double>(most);
    sum = total;
  }
  bool is_empty() const { return sum == 0; }
  T share() const { return is_empty() ? T(0) : static_cast<T>(1 / sum); }
  // The logsumexp; far below every logit where no class is left.
  double log_sum() const { return is_empty() ? static_cast<double>(kLeastLogit<T>) : top + std::log(sum); }
};

inline double log_sigmoid(double x) { return (x < 0 ? x : 0) - std::log1p(std::exp(x < 0 ? x : -x)); }
inline double sigmoid(double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); }

// KL(p ‖ q) of two outcomes whose log-odds are given.
inline double binary_divergence(double q, double p) {
  return sigmoid(p) * (log_sigmoid(p) - log_sigmoid(q)) + sigmoid(-p) * (log_sigmoid(-p) - log_sigmoid(-q));
}

// KL(p ‖ q) among the classes of the mask; grad[k] += scale · (q - p) - pull · q. Adds the entropy of p to `entropy`.
template <typename T>
double softmax_divergence(
    const SoftRow<T>& q_row, const SoftRow<T>& p_row, int64_t count, T scale, T pull, T* grad, double* entropy) {
  if (q_row.is_empty()) return 0;
  const T q_share = q_row.share(), p_share = p_row.share();
  const T q_top = static_cast<T>(q_row.top), p_top = static_cast<T>(p_row.top);
  const T log_q_sum = static_cast<T>(std::log(q_row.sum)), log_p_sum = static_cast<T>(std::log(p_row.sum));
  const T *q_scaled = q_row.scaled, *p_scaled = p_row.scaled, *q_exp = q_row.exponential, *p_exp = p_row.exponential;
  double kl_total = 0, entropy_total = 0;
  for (int64_t first = 0; first < count; first += kFlush) {
    const int64_t last = count - first < kFlush ? count : first + kFlush;
    T kl = 0, surprise = 0;
#pragma omp simd reduction(+ : kl, surprise)
    for (int64_t k = first; k < last; ++k) {
      const T q = q_exp[k] * q_share, p = p_exp[k] * p_share;
      const T log_p = (p_scaled[k] - p_top) - log_p_sum;
      kl += kl_term(p, q, ((q_scaled[k] - q_top) - (p_scaled[k] - p_top)) - (log_q_sum - log_p_sum));
      surprise -= p * log_p;
      if (grad != nullptr) grad[k] += scale * (q - p) - pull * q;
    }
    kl_total += static_cast<double>(kl);
    entropy_total += static_cast<double>(surprise);
  }
  if (entropy != nullptr) *entropy += entropy_total;
  return kl_total;
}

// Both networks' rows of one region, and the classes that they both have.
template <typename T>
struct RowPair {
  SoftRow<T> student, teacher;
  T* mask;  // [K], 1 or 0

  void load_mask(const T* s, const T* t, int64_t s_stride, int64_t t_stride, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      const bool is_masked = s[k * s_stride] <= kMaskedLogit<T> || t[k * t_stride] <= kMaskedLogit<T>;
      mask[k] = is_masked ? T(0) : T(1);  // a NaN is no masked class
    }
  }
};

// The loss of one row as the sum of its five parts; grad [K] is added to where it is wanted.
template <typename T>
double row_loss(
    const RowFactors& factors, T temperature, RowPair<T>& rows, const T* s, const T* t, int64_t s_stride,
    int64_t t_stride, int64_t count, int64_t target, T* grad) {
  const T inverse = T(1) / temperature;
  rows.load_mask(s, t, s_stride, t_stride, count);
  rows.student.load(s, s_stride, rows.mask, inverse, count);
  rows.teacher.load(t, t_stride, rows.mask, inverse, count);
  double loss = 0;
  if (factors.whole != 0) {
    rows.student.softmax(rows.mask, count);
    rows.teacher.softmax(rows.mask, count);
    const T scale = static_cast<T>(factors.whole) * inverse;
    loss += factors.whole * softmax_divergence(rows.student, rows.teacher, count, scale, T(0), grad, (double*)nullptr);
  }
  if (factors.binary == 0 && factors.others == 0 && factors.entropy == 0 && factors.target == 0) return loss;
  const T true_mask = rows.mask[target];
  rows.mask[target] = T(0);
  rows.student.softmax(rows.mask, count);
  rows.teacher.softmax(rows.mask, count);
  double q = rows.student.scaled[target] - rows.student.log_sum();
  double p = rows.teacher.scaled[target] - rows.teacher.log_sum();
  double pull = factors.binary * (sigmoid(q) - sigmoid(p)) * inverse;
  loss += factors.binary * binary_divergence(q, p);
  const bool is_plain = temperature == T(1);
  if (factors.target != 0 && is_plain) {
    loss -= factors.target * sigmoid(p) * log_sigmoid(q);
    pull -= factors.target * sigmoid(p) * sigmoid(-q);
  }
  double entropy = 0;
  const T scale = static_cast<T>(factors.others) * inverse;
  loss += factors.others *
      softmax_divergence(rows.student, rows.teacher, count, scale, static_cast<T>(pull), grad, &entropy);
  loss += factors.entropy * entropy;
  if (grad != nullptr) grad[target] += static_cast<T>(pull);
  if (factors.target != 0 && !is_plain) {
    rows.mask[target] = true_mask;
    rows.student.load(s, s_stride, rows.mask, T(1), count);
    rows.teacher.load(t, t_stride, rows.mask, T(1), count);
    rows.mask[target] = T(0);
    rows.student.softmax(rows.mask, count);
    rows.teacher.softmax(rows.mask, count);
    q = rows.student.scaled[target] - rows.student.log_sum();
    p = rows.teacher.scaled[target] - rows.teacher.log_sum();
    loss -= factors.target * sigmoid(p) * log_sigmoid(q);
    pull = -factors.target * sigmoid(p) * sigmoid(-q);
    if (grad != nullptr) {
      const T share = static_cast<T>(pull) * rows.student.share();
      for (int64_t k = 0; k < count; ++k) grad[k] -= share * rows.student.exponential[k];
      grad[target] += static_cast<T>(pull);
    }
  }
  return loss;
}

// The likeliest class of a row, the first of equals.
template <typename T>
inline int64_t likeliest(const T* row, int64_t stride, const T* mask, int64_t count) {
  int64_t best = 0;
  T most = kMaskedLogit<T>;
  for (int64_t k = 0; k < count; ++k) {
    const T value = mask[k] > T(0) ? row[k * stride] : kMaskedLogit<T>;
    if (value > most) {
      most = value;
      best = k;
    }
  }
  return best;
}

inline int64_t row_scratch(int64_t classes) { return 5 * pad(classes); }

template <typename T>
void row_losses(
    const RowFactors& factors, T temperature, T complementary_weight, const LogitRows<T>& student,
    const LogitRows<T>& teacher, const int64_t* targets, T* losses, T* grads, T* scratch, int64_t begin, int64_t end) {
  const int64_t classes = student.classes, regions = student.regions, padded = pad(classes);
  RowPair<T> rows{{scratch, scratch + padded}, {scratch + 2 * padded, scratch + 3 * padded}, scratch + 4 * padded};
  for (int64_t image = begin; image < end; ++image) {
    const int64_t target = targets[image];
    bool is_right_on_whole = false;
    for (int64_t n = 0; n < regions; ++n) {
      const T* s = student.data + image * student.image_stride + n * student.region_stride;
      const T* t = teacher.data + image * teacher.image_stride + n * teacher.region_stride;
      T* grad = grads == nullptr ? nullptr : grads + (image * regions + n) * classes;
      if (grad != nullptr) clear(grad, classes);
      double loss = row_loss(
          factors, temperature, rows, s, t, student.class_stride, teacher.class_stride, classes, target, grad);
      if (regions > 1 && complementary_weight != T(1)) {
        rows.load_mask(s, t, student.class_stride, teacher.class_stride, classes);
        const bool is_right = likeliest(t, teacher.class_stride, rows.mask, classes) == target;
        if (n == 0) is_right_on_whole = is_right;
        if (is_right != is_right_on_whole) {
          loss *= static_cast<double>(complementary_weight);
          for (int64_t k = 0; grad != nullptr && k < classes; ++k) grad[k] *= complementary_weight;
        }
      }
      losses[image * regions + n] = static_cast<T>(loss);
    }
  }
}
