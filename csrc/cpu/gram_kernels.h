// The KL between row softmaxes of two Gram matrices, and its derivative.
// Included once for each instruction set, inside its namespace (kernels_table.h).

constexpr int64_t kLanes = 16;  // rows are padded to whole vectors, of which 64 bytes are the longest

// Partial sums of this many terms are kept in the terms' own type, then added up in float64: a long run of equal terms
// rounds the same way every time, the more often the fewer lanes share it.
constexpr int64_t kFlush = 64;

template <typename T>
inline void extremes(const T* row, int64_t count, T& low, T& high) {
  T least = row[0], most = row[0];
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int64_t k = 0; k < count; ++k) {
    least = row[k] < least ? row[k] : least;
    most = row[k] > most ? row[k] : most;
  }
  low = least;
  high = most;
}

// One network's logits z of one cell, seen as the Gram matrix z z^T / temperature: row k holds x z with x = z_k / T,
// so its maximum is x·max(z) or x·min(z) and the row never has to be searched.
template <typename T>
struct RankOne {
  const T* z;  // [padded]
  T low, high;
  T x, top;  // the current row's factor and the z of its maximum

  void load(const T* row, int64_t classes, int64_t padded, T* storage) {
    for (int64_t k = 0; k < classes; ++k) storage[k] = row[k];
    for (int64_t k = classes; k < padded; ++k) storage[k] = row[0];
    z = storage;
    extremes(row, classes, low, high);
  }
  void select_row(int64_t k, T inverse_temperature) {
    x = z[k] * inverse_temperature;
    top = x < T(0) ? low : high;
  }
};

// Sizes in elements of the scratch arrays of class_gram: both networks' z, their exponentials, the mask, two sums.
constexpr int64_t kClassArrays = 7;

inline int64_t pad(int64_t classes) { return (classes + kLanes - 1) / kLanes * kLanes; }

// The row's exponentials, masked to 0 in the padding, and their sums.
template <typename T>
inline void row_exponentials(
    const RankOne<T>& student, const RankOne<T>& teacher, const T* mask, int64_t padded, T* student_exp, T* teacher_exp,
    T& student_sum, T& teacher_sum) {
  double s_total = 0, t_total = 0;
  const T *s_z = student.z, *t_z = teacher.z;
  const T s_x = student.x, t_x = teacher.x, s_top = student.top, t_top = teacher.top;
  for (int64_t first = 0; first < padded; first += kFlush) {
    const int64_t last = padded - first < kFlush ? padded : first + kFlush;
    T s_sum = 0, t_sum = 0;
#pragma omp simd reduction(+ : s_sum, t_sum)
    for (int64_t j = first; j < last; ++j) {
      const T s = exp_nonpositive(s_x * (s_z[j] - s_top)) * mask[j];
      const T t = exp_nonpositive(t_x * (t_z[j] - t_top)) * mask[j];
      student_exp[j] = s;
      teacher_exp[j] = t;
      s_sum += s;
      t_sum += t;
    }
    s_total += static_cast<double>(s_sum);
    t_total += static_cast<double>(t_sum);
  }
  student_sum = static_cast<T>(s_total);
  teacher_sum = static_cast<T>(t_total);
}

// With D = q - p of row k: returns the row's KL, adds D_kj z_k to column_sums[j], gives Σ_j D_kj z_j in row_sum.
template <bool kGradient, typename T>
inline double row_divergence(
    const RankOne<T>& student, const RankOne<T>& teacher, T z_k, const T* student_exp, const T* teacher_exp,
    T student_sum, T teacher_sum, int64_t padded, T* column_sums, T& row_sum) {
  const T s_share = T(1) / student_sum, t_share = T(1) / teacher_sum;
  const T log_ratio = std::log(student_sum * t_share);
  const T *s_z = student.z, *t_z = teacher.z;
  const T s_x = student.x, t_x = teacher.x, s_top = student.top, t_top = teacher.top;
  double kl_total = 0, total = 0;
  for (int64_t first = 0; first < padded; first += kFlush) {
    const int64_t last = padded - first < kFlush ? padded : first + kFlush;
    T kl = 0, sum = 0;
#pragma omp simd reduction(+ : kl, sum)
    for (int64_t j = first; j < last; ++j) {
      const T q = student_exp[j] * s_share;
      const T p = teacher_exp[j] * t_share;
      const T log_q_over_p = s_x * (s_z[j] - s_top) - t_x * (t_z[j] - t_top) - log_ratio;
      kl += kl_term(p, q, log_q_over_p);
      if (kGradient) {
        const T d = q - p;
        sum += d * s_z[j];
        column_sums[j] += d * z_k;
      }
    }
    kl_total += static_cast<double>(kl);
    total += static_cast<double>(sum);
  }
  row_sum = static_cast<T>(total);
  return kl_total;
}

// The exact sum over all K rows of one cell's class Gram. grad: [K], weight · (D z + D^T z) / temperature.
template <bool kGradient, typename T>
T class_cell(
    const T* student_row, const T* teacher_row, int64_t classes, T temperature, T weight, T* grad, T* scratch) {
  const int64_t padded = pad(classes);
  T* mask = scratch + 2 * padded;
  T* student_exp = scratch + 3 * padded;
  T* teacher_exp = scratch + 4 * padded;
  T* column_sums = scratch + 5 * padded;
  T* row_sums = scratch + 6 * padded;
  RankOne<T> student, teacher;
  student.load(student_row, classes, padded, scratch);
  teacher.load(teacher_row, classes, padded, scratch + padded);
  for (int64_t k = 0; k < padded; ++k) mask[k] = k < classes ? T(1) : T(0);
  clear(column_sums, padded);

  const T inverse_temperature = T(1) / temperature;
  double total = 0;
  for (int64_t k = 0; k < classes; ++k) {
    student.select_row(k, inverse_temperature);
    teacher.select_row(k, inverse_temperature);
    T student_sum, teacher_sum;
    row_exponentials(student, teacher, mask, padded, student_exp, teacher_exp, student_sum, teacher_sum);
    total += row_divergence<kGradient>(
        student, teacher, student.z[k], student_exp, teacher_exp, student_sum, teacher_sum, padded, column_sums,
        row_sums[k]);
  }
  if (kGradient) {
    const T scale = weight * inverse_temperature;
    for (int64_t k = 0; k < classes; ++k) grad[k] = (row_sums[k] + column_sums[k]) * scale;
  }
  return static_cast<T>(total);
}

// Σ exp((row - highest)/temperature)
template <typename T>
inline T row_sum_exp(const T* row, int64_t count, T highest, T inverse_temperature) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) sum += exp_nonpositive((row[j] - highest) * inverse_temperature);
  return sum;
}

template <typename T>
void gram_rows(
    T* student_gram, T* teacher_gram, int64_t points, T temperature, const T* row_weights, T* losses, int64_t begin,
    int64_t end) {
  const T inverse_temperature = T(1) / temperature;
  for (int64_t row = begin; row < end; ++row) {
    T* g_s = student_gram + row * points;
    T* g_t = teacher_gram + row * points;
    T low, s_top, t_top;
    extremes(g_s, points, low, s_top);
    extremes(g_t, points, low, t_top);
    const T s_sum = row_sum_exp(g_s, points, s_top, inverse_temperature);
    const T t_sum = row_sum_exp(g_t, points, t_top, inverse_temperature);
    const T s_share = T(1) / s_sum, t_share = T(1) / t_sum;
    const T log_ratio = std::log(s_sum * t_share);
    const T weight = row_weights[row] * inverse_temperature;
    T kl = 0;
#pragma omp simd reduction(+ : kl)
    for (int64_t j = 0; j < points; ++j) {
      const T s = (g_s[j] - s_top) * inverse_temperature;
      const T t = (g_t[j] - t_top) * inverse_temperature;
      const T q = exp_nonpositive(s) * s_share;
      const T p = exp_nonpositive(t) * t_share;
      kl += kl_term(p, q, s - t - log_ratio);
      g_s[j] = (q - p) * weight;
    }
    losses[row] = kl;
  }
}
