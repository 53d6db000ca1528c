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

  void load(const T* row, const T* mask, T inverse_temperature, int64_t count) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
      const T value = row[k] * inverse_temperature;
      scaled[k] = mask[k] > T(0) ? value : kMaskedLogit<T>;
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
        const T below = mask[k] > T(0) ? scaled[k] - most : T(0);  // the true class may lie above the others
        const T value = exp_nonpositive(below) * mask[k];
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
template <bool kGradient, typename T>
double softmax_divergence(
    const SoftRow<T>& q_row, const SoftRow<T>& p_row, int64_t count, T scale, T pull, T* grad, double& entropy) {
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
      if (kGradient) grad[k] += scale * (q - p) - pull * q;
    }
    kl_total += static_cast<double>(kl);
    entropy_total += static_cast<double>(surprise);
  }
  entropy += entropy_total;
  return kl_total;
}

// Both networks' rows of one region, and the classes that they both have.
template <typename T>
struct RowPair {
  SoftRow<T> student, teacher;
  T* mask;  // [K], 1 or 0
  T *student_storage, *teacher_storage;  // [K]
  const T *student_logits, *teacher_logits;  // [K], in storage where they do not lie together

  void load(const T* s, const T* t, int64_t s_stride, int64_t t_stride, int64_t count) {
    student_logits = together(s, s_stride, student_storage, count);
    teacher_logits = together(t, t_stride, teacher_storage, count);
    const T *first = student_logits, *second = teacher_logits;
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
      const bool is_masked = first[k] <= kMaskedLogit<T> || second[k] <= kMaskedLogit<T>;
      mask[k] = is_masked ? T(0) : T(1);  // a NaN is no masked class
    }
  }
  void scale(T inverse_temperature, int64_t count) {
    student.load(student_logits, mask, inverse_temperature, count);
    teacher.load(teacher_logits, mask, inverse_temperature, count);
  }
  void softmax(int64_t count) {
    student.softmax(mask, count);
    teacher.softmax(mask, count);
  }

 private:
  static const T* together(const T* row, int64_t stride, T* storage, int64_t count) {
    if (stride == 1) return row;
    for (int64_t k = 0; k < count; ++k) storage[k] = row[k * stride];
    return storage;
  }
};

// Log-odds of the true class against all others, which the softmax runs over.
struct Margins {
  double student, teacher;
};

template <typename T>
Margins margins_of(const RowPair<T>& rows, int64_t target) {
  return {
      .student = rows.student.scaled[target] - rows.student.log_sum(),
      .teacher = rows.teacher.scaled[target] - rows.teacher.log_sum()};
}

// -p_y log q_y at temperature 1, whose derivative by the student's margin is the return value's `pull`.
struct TargetTerm {
  double loss, pull;
};

inline TargetTerm target_term(Margins margins) {
  return {
      .loss = -sigmoid(margins.teacher) * log_sigmoid(margins.student),
      .pull = -sigmoid(margins.teacher) * sigmoid(-margins.student)};
}

// The parts of the loss that speak of the true class and of the others; the row is loaded and scaled.
template <bool kGradient, typename T>
double loss_around_target(
    const RowFactors& factors, T temperature, RowPair<T>& rows, int64_t count, int64_t target, T* grad) {
  const T inverse = T(1) / temperature;
  const T true_mask = rows.mask[target];
  rows.mask[target] = T(0);
  rows.softmax(count);
  const Margins margins = margins_of(rows, target);
  double pull = factors.binary * (sigmoid(margins.student) - sigmoid(margins.teacher)) * inverse;
  double loss = factors.binary * binary_divergence(margins.student, margins.teacher);
  const bool is_plain = temperature == T(1);
  if (factors.target != 0 && is_plain) {
    const TargetTerm term = target_term(margins);
    loss += factors.target * term.loss;
    pull += factors.target * term.pull;
  }
  double entropy = 0;
  const T scale = static_cast<T>(factors.others) * inverse;
  loss += factors.others * softmax_divergence<kGradient>(
                               rows.student, rows.teacher, count, scale, static_cast<T>(pull), grad, entropy);
  loss += factors.entropy * entropy;
  if (kGradient) grad[target] += static_cast<T>(pull);
  if (factors.target == 0 || is_plain) return loss;
  rows.mask[target] = true_mask;
  rows.scale(T(1), count);
  rows.mask[target] = T(0);
  rows.softmax(count);
  const TargetTerm term = target_term(margins_of(rows, target));
  if (kGradient) {
    const T share = static_cast<T>(factors.target * term.pull) * rows.student.share();
    const T* exponential = rows.student.exponential;
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) grad[k] -= share * exponential[k];
    grad[target] += static_cast<T>(factors.target * term.pull);
  }
  return loss + factors.target * term.loss;
}

// The loss of one row as the sum of its five parts; grad [K] is written where it is wanted.
template <bool kGradient, typename T>
double row_loss(const RowFactors& factors, T temperature, RowPair<T>& rows, int64_t count, int64_t target, T* grad) {
  if (kGradient) clear(grad, count);
  rows.scale(T(1) / temperature, count);
  double loss = 0, entropy = 0;
  if (factors.whole != 0) {
    rows.softmax(count);
    const T scale = static_cast<T>(factors.whole) / temperature;
    loss += factors.whole *
        softmax_divergence<kGradient>(rows.student, rows.teacher, count, scale, T(0), grad, entropy);
  }
  if (factors.binary != 0 || factors.others != 0 || factors.entropy != 0 || factors.target != 0) {
    loss += loss_around_target<kGradient>(factors, temperature, rows, count, target, grad);
  }
  return loss;
}

// Whether no class is likelier than `target`, the first of equals.
template <typename T>
inline bool is_likeliest(const T* row, const T* mask, int64_t count, int64_t target) {
  const T own = mask[target] > T(0) ? row[target] : kMaskedLogit<T>;
  bool is_beaten = false;
#pragma omp simd reduction(|| : is_beaten)
  for (int64_t k = 0; k < count; ++k) {
    const T value = mask[k] > T(0) ? row[k] : kMaskedLogit<T>;
    is_beaten = is_beaten || value > own || (value == own && k < target);
  }
  return !is_beaten;
}

inline int64_t row_scratch(int64_t classes) { return 7 * pad(classes); }

template <bool kGradient, typename T>
void image_losses(
    const RowFactors& factors, T temperature, T complementary_weight, const LogitRows<T>& student,
    const LogitRows<T>& teacher, int64_t image, int64_t target, RowPair<T>& rows, T* losses, T* grads) {
  const int64_t classes = student.classes;
  bool is_right_on_whole = false;
  for (int64_t n = 0; n < student.regions; ++n) {
    rows.load(
        student.data + image * student.image_stride + n * student.region_stride,
        teacher.data + image * teacher.image_stride + n * teacher.region_stride, student.class_stride,
        teacher.class_stride, classes);
    T weight = T(1);
    if (student.regions > 1 && complementary_weight != T(1)) {
      const bool is_right = is_likeliest(rows.teacher_logits, rows.mask, classes, target);
      if (n == 0) is_right_on_whole = is_right;
      if (is_right != is_right_on_whole) weight = complementary_weight;
    }
    T* grad = kGradient ? grads + n * classes : nullptr;
    losses[n] = weight * static_cast<T>(row_loss<kGradient>(factors, temperature, rows, classes, target, grad));
    if (kGradient && weight != T(1)) {
      for (int64_t k = 0; k < classes; ++k) grad[k] *= weight;
    }
  }
}

template <typename T>
void row_losses(
    const RowFactors& factors, T temperature, T complementary_weight, const LogitRows<T>& student,
    const LogitRows<T>& teacher, const int64_t* targets, T* losses, T* grads, T* scratch, int64_t begin, int64_t end) {
  const int64_t padded = pad(student.classes);
  RowPair<T> rows{};
  rows.student = {.scaled = scratch, .exponential = scratch + padded, .top = 0, .sum = 0};
  rows.teacher = {.scaled = scratch + 2 * padded, .exponential = scratch + 3 * padded, .top = 0, .sum = 0};
  rows.mask = scratch + 4 * padded;
  rows.student_storage = scratch + 5 * padded;
  rows.teacher_storage = scratch + 6 * padded;
  for (int64_t image = begin; image < end; ++image) {
    T* image_loss = losses + image * student.regions;
    if (grads == nullptr) {
      image_losses<false>(
          factors, temperature, complementary_weight, student, teacher, image, targets[image], rows, image_loss, grads);
    } else {
      image_losses<true>(
          factors, temperature, complementary_weight, student, teacher, image, targets[image], rows, image_loss,
          grads + image * student.regions * student.classes);
    }
  }
}
