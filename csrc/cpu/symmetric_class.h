// The exact sum of a cell's class Gram with every exponential taken once (docs/linear_class_gram.md, "The exact sum").
// Included once for each instruction set, inside its namespace (kernels_table.h).
//
// E_ij = exp(z_i z_j / temperature) is symmetric, and its diagonal makes every row sum at least 1: while no exponent
// exceeds kMostExponent no row needs a shift, and E_ij serves row i and row j. The upper triangle is kept, in strips of
// kStrip rows, so that the sums that need a row's normaliser read it instead of taking exponentials again.

constexpr int64_t kStrip = 4;
constexpr bool kFewRegisters = ICD_VECTOR_BYTES < 64;  // 16 of them; AVX-512 has 32
constexpr int64_t kFewClasses = 128;  // up to which it is the fastest sum of all, and twice that of rows that are not close

// Columns of a strip that begins with row `first`, in whole vectors; what lies beyond the last class is multiplied by 0.
inline int64_t strip_width(int64_t first, int64_t count) { return pad(count - first); }

// Numbers of a kept triangle.
inline int64_t triangle_size(int64_t count) {
  int64_t size = 0;
  for (int64_t first = 0; first < count; first += kStrip) size += kStrip * strip_width(first, count);
  return size;
}

// Numbers of an array over the classes that strips read: a strip may begin anywhere and reads whole vectors.
inline int64_t strip_array(int64_t count) { return pad(count) + kLanes; }

// One strip of E: sums[n][r] += Σ_j E_rj f_n[j] for its rows, and columns[n][j] += Σ_r E_rj f_n[r], which by symmetry is part
// of row j's sum. f: up to three functions of the classes from the strip's first on, and so are z and columns. With kMakes,
// E = exp(x z) is written first, and read otherwise.
template <bool kMakes, int kFunctions, typename T>
inline void strip_sums(
    T* strip, const T* x, const T* z, const T* const* f, T* const* columns, int64_t width, double (*sums)[kStrip]) {
  constexpr int64_t step = kVectorLanes<T>;
  // No run of more than kFlush terms in their own type, of few lanes neither.
  for (int64_t begin = 0; begin < width; begin += kFlush * step) {
    const int64_t end = width - begin < kFlush * step ? width : begin + kFlush * step;
    Vector<T> rows[kFunctions][kStrip] = {};
    for (int64_t j = begin; j < end; j += step) {
      Vector<T> e[kStrip];
      for (int64_t r = 0; r < kStrip; ++r) {
        T* place = strip + r * width + j;
        e[r] = kMakes ? exp_of(x[r] * load(z + j)) : load(place);
        if (kMakes) store(place, e[r]);
      }
      for (int n = 0; n < kFunctions; ++n) {
        const Vector<T> of_columns = load(f[n] + j);
        for (int64_t r = 0; r < kStrip; ++r) rows[n][r] += e[r] * of_columns;
        const Vector<T> column = e[0] * f[n][0] + e[1] * f[n][1] + e[2] * f[n][2] + e[3] * f[n][3];
        store(columns[n] + j, load(columns[n] + j) + column);
      }
    }
    for (int n = 0; n < kFunctions; ++n) add_lanes<T>(rows[n], sums[n]);
  }
}

// Adds the gathered columns to the sums and clears them: no long run of terms in their own type.
template <typename T>
inline void flush_columns(double* sums, T* columns, int64_t first, int64_t count) {
#pragma omp simd
  for (int64_t j = first; j < count; ++j) {
    sums[j] += static_cast<double>(columns[j]);
    columns[j] = T(0);
  }
}

// Products of one network's symmetric E with up to three functions of the classes: sums[f] = E functions[f].
// functions and columns: strip_array(count) numbers each, 0 beyond the classes; kept: E's upper triangle, which is made
// of z with kMakes and read without.
template <bool kMakes, int kFunctions, typename T>
void symmetric_products(
    const T* z, T inverse_temperature, int64_t count, const T* const* functions, double* const* sums, T* const* columns,
    T* kept) {
  for (int f = 0; f < kFunctions; ++f) {
    for (int64_t j = 0; j < count; ++j) sums[f][j] = 0;
    clear(columns[f], strip_array(count));
  }
  T* strip = kept;
  for (int64_t first = 0; first < count; first += kStrip) {
    const int64_t rows = count - first < kStrip ? count - first : kStrip, width = strip_width(first, count);
    const T* f[kFunctions];
    T* behind[kFunctions];
    T x[kStrip];
    double totals[kFunctions][kStrip] = {};
    for (int n = 0; n < kFunctions; ++n) {
      f[n] = functions[n] + first;
      behind[n] = columns[n] + first;
      flush_columns(sums[n], columns[n], first, first + rows);
    }
    for (int64_t r = 0; r < kStrip; ++r) x[r] = z[first + r] * inverse_temperature;
    if constexpr (kMakes && kFewRegisters) {  // the sums of all functions at once would not stay in them
      strip_sums<true, 1>(strip, x, z + first, f, behind, width, totals);
      strip_sums<false, kFunctions - 1>(strip, x, z + first, f + 1, behind + 1, width, totals + 1);
    } else {
      strip_sums<kMakes, kFunctions>(strip, x, z + first, f, behind, width, totals);
    }
    for (int n = 0; n < kFunctions; ++n) {
      for (int64_t r = 0; r < rows; ++r) sums[n][first + r] += totals[n][r];
      clear(behind[n], kStrip);  // the strip's own square is in its rows already
      if ((first + kStrip) % kFlush == 0) flush_columns(sums[n], columns[n], first + kStrip, count);
    }
    strip += kStrip * width;
  }
  for (int n = 0; n < kFunctions; ++n) flush_columns(sums[n], columns[n], 0, count);
}

// While it lives, results below the smallest normal number are 0: a share E_ij / S_i that small says nothing, and each
// would cost a hundred times another.
struct NoDenormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  NoDenormals() { _mm_setcsr(before | 0x8040); }
  ~NoDenormals() { _mm_setcsr(before); }
#endif
};

// Both networks of one cell, and the sums of pass one: p is the teacher's softmax, q the student's.
template <typename T>
struct SymmetricCell {
  int64_t count;
  T inverse_temperature;
  double *q_sum, *q_student;              // [count] E_S 1, E_S s
  double *p_sum, *p_student, *p_teacher;  // [count] E_T 1, E_T s, E_T t
  T *ones, *student, *teacher;            // strip arrays
  T* columns[3];
  T *q_share, *p_share, *log_ratio, *difference;  // strip arrays: 1 / sums, log of their ratio, s - t
  T *student_kept, *teacher_kept;                 // triangles

  static int64_t scratch_bytes(int64_t count) {
    return (2 * triangle_size(count) + 10 * strip_array(count)) * static_cast<int64_t>(sizeof(T)) +
        5 * count * static_cast<int64_t>(sizeof(double)) + 64;
  }
  SymmetricCell(const T* s, const T* t, int64_t classes, T inverse, void* scratch)
      : count(classes), inverse_temperature(inverse) {
    double* doubles = static_cast<double*>(scratch);
    for (double** place : {&q_sum, &q_student, &p_sum, &p_student, &p_teacher}) {
      *place = doubles;
      doubles += count;
    }
    T* numbers = reinterpret_cast<T*>(doubles);
    for (T** place :
         {&ones, &student, &teacher, &columns[0], &columns[1], &columns[2], &q_share, &p_share, &log_ratio,
          &difference}) {
      *place = numbers;
      clear(numbers, strip_array(count));
      numbers += strip_array(count);
    }
    student_kept = numbers;
    teacher_kept = student_kept + triangle_size(count);
    for (int64_t k = 0; k < count; ++k) {
      ones[k] = T(1);
      student[k] = s[k];
      teacher[k] = t[k];
    }
  }

  void sum() {
    const T* const functions[] = {ones, student, teacher};
    double* const to_q[] = {q_sum, q_student};
    symmetric_products<true, 2>(student, inverse_temperature, count, functions, to_q, columns, student_kept);
    double* const to_p[] = {p_sum, p_student, p_teacher};
    symmetric_products<true, 3>(teacher, inverse_temperature, count, functions, to_p, columns, teacher_kept);
  }

  // Σ over the rows of log S_S - log S_T + (t <t> - s <s>) / temperature, means over p. A ratio is below
  // kMostSymmetric · e^kMostExponent: a product of kRatios is a double, and takes one logarithm.
  double divergence() const {
    constexpr int64_t kRatios = 8;
    double total = 0;
    for (int64_t first = 0; first < count; first += kRatios) {
      double product = 1, means = 0;
      for (int64_t i = first; i < count && i < first + kRatios; ++i) {
        const double s = static_cast<double>(student[i]), t = static_cast<double>(teacher[i]), share = 1 / p_sum[i];
        product *= q_sum[i] * share;
        means += (t * p_teacher[i] - s * p_student[i]) * share;
      }
      total += std::log(product) + means * static_cast<double>(inverse_temperature);
    }
    return total;
  }

  // The same as a sum of small terms (row_math.h), for rows that nearly agree. With kGradient q_student becomes D s + D^T s and
  // q_sum the row sums of D, where D = q - p = p (log q - log p) + the term: a difference of two shares has lost its digits.
  template <bool kGradient>
  double close_divergence() {
    for (int64_t i = 0; i < count; ++i) {
      q_share[i] = static_cast<T>(1 / q_sum[i]);
      p_share[i] = static_cast<T>(1 / p_sum[i]);
      log_ratio[i] = static_cast<T>(std::log(q_sum[i] / p_sum[i]));
      difference[i] = student[i] - teacher[i];
      q_student[i] = q_sum[i] = 0;
    }
    T *mirrored = columns[0], *behind = columns[1], *behind_sum = columns[2];
    for (int64_t j = 0; j < strip_array(count); ++j) mirrored[j] = ones[j];  // columns whose rows a strip speaks of too
    clear(behind, strip_array(count));
    clear(behind_sum, strip_array(count));
    double total = 0;
    const T *q = student_kept, *p = teacher_kept;
    for (int64_t first = 0; first < count; first += kStrip) {
      const int64_t width = strip_width(first, count), stop = first + kStrip < count ? first + kStrip : count;
      clear(mirrored + first, kStrip);
      for (int64_t i = first; i < stop; ++i) {
        total += close_row<kGradient>(i, first, width, q + (i - first) * width, p + (i - first) * width);
      }
      if (kGradient && (first + kStrip) % kFlush == 0) {
        flush_columns(q_student, behind, first, count);
        flush_columns(q_sum, behind_sum, first, count);
      }
      q += kStrip * width;
      p += kStrip * width;
    }
    if (kGradient) {
      flush_columns(q_student, behind, 0, count);
      flush_columns(q_sum, behind_sum, 0, count);
    }
    return total;
  }

  // Row i from column `first` on, and row j's entry of column i where it is mirrored.
  template <bool kGradient>
  double close_row(int64_t i, int64_t first, int64_t width, const T* q, const T* p) {
    const T s = student[i] * inverse_temperature, d_i = difference[i] * inverse_temperature, own_s = student[i];
    const T q_i = q_share[i], p_i = p_share[i], ratio = log_ratio[i];
    const T *apart = difference + first, *z_s = student + first, *z_t = teacher + first, *q_shares = q_share + first;
    const T *p_shares = p_share + first, *ratios = log_ratio + first, *own = ones + first, *mirror = columns[0] + first;
    T *behind = columns[1] + first, *behind_sum = columns[2] + first;
    T kl[kLanes] = {}, gradient[kLanes] = {}, sum[kLanes] = {};
    for (int64_t j = 0; j < width; j += kLanes) {
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const T exponents = s * apart[j + l] + d_i * z_t[j + l];  // (s_i s_j - t_i t_j) / temperature
        const T in_row_p = p[j + l] * p_i, in_row_d = exponents - ratio;
        const T in_column_p = p[j + l] * p_shares[j + l], in_column_d = exponents - ratios[j + l];
        const T in_row = kl_term(in_row_p, q[j + l] * q_i, in_row_d);
        const T in_column = kl_term(in_column_p, q[j + l] * q_shares[j + l], in_column_d);
        kl[l] += in_row * own[j + l] + in_column * mirror[j + l];
        if (kGradient) {
          const T row = in_row_p * in_row_d + in_row, column = in_column_p * in_column_d + in_column;
          gradient[l] += (row + column) * z_s[j + l];
          sum[l] += row * own[j + l];
          behind[j + l] += (row + column) * own_s * mirror[j + l];
          behind_sum[j + l] += column * mirror[j + l];
        }
      }
    }
    if (kGradient) {
      q_student[i] += sum_of(gradient, kLanes);
      q_sum[i] += sum_of(sum, kLanes);
    }
    return sum_of(kl, kLanes);
  }

  // weight · (D s + D^T s) / temperature after close_divergence. A row of D sums to 0; what it sums to here is the rounding of
  // log q - log p, the same for the whole row, and p times that is taken off the row.
  void close_gradient(T weight, T* grad) {
    T* rounding = q_share;
    for (int64_t i = 0; i < count; ++i) {
      rounding[i] = static_cast<T>(q_sum[i] * static_cast<double>(student[i]) / p_sum[i]);
      q_student[i] -= q_sum[i] * p_student[i] / p_sum[i];
    }
    const T* const functions[] = {rounding};
    symmetric_products<false, 1>(teacher, inverse_temperature, count, functions, &p_teacher, columns, teacher_kept);
    const double scale = static_cast<double>(weight) * static_cast<double>(inverse_temperature);
    for (int64_t i = 0; i < count; ++i) grad[i] = static_cast<T>((q_student[i] - p_teacher[i]) * scale);
  }

  // weight · (D s + D^T s) / temperature, D = q - p. Overwrites the sums.
  void gradient(T weight, T* grad) {
    T *q_weights = q_share, *p_weights = p_share;
    for (int64_t i = 0; i < count; ++i) {
      q_weights[i] = static_cast<T>(static_cast<double>(student[i]) / q_sum[i]);
      p_weights[i] = static_cast<T>(static_cast<double>(student[i]) / p_sum[i]);
      q_student[i] = q_student[i] / q_sum[i] - p_student[i] / p_sum[i];  // the rows
    }
    const T* const of_q[] = {q_weights};
    const T* const of_p[] = {p_weights};
    symmetric_products<false, 1>(student, inverse_temperature, count, of_q, &q_sum, columns, student_kept);
    symmetric_products<false, 1>(student, inverse_temperature, count, of_p, &p_sum, columns, teacher_kept);
    const double scale = static_cast<double>(weight) * static_cast<double>(inverse_temperature);
    for (int64_t i = 0; i < count; ++i) grad[i] = static_cast<T>((q_student[i] + (q_sum[i] - p_sum[i])) * scale);
  }
};

// Tries the sum without shifts for one cell; false where that cannot be.
template <bool kGradient, typename T>
bool try_symmetric(
    const CellSize& size, const T* student, const T* teacher, int64_t classes, T temperature, T weight, T* grad,
    void* scratch, T& loss) {
  if (!size.is_symmetric(classes)) return false;
  const NoDenormals none;
  SymmetricCell<T> cell(student, teacher, classes, T(1) / temperature, scratch);
  cell.sum();
  double total = cell.divergence();
  const bool close = total < size.close_rows() * static_cast<double>(classes);
  if (close) total = cell.template close_divergence<kGradient>();
  loss = static_cast<T>(total);
  if (kGradient && close) cell.close_gradient(weight, grad);
  if (kGradient && !close) cell.gradient(weight, grad);
  return true;
}
