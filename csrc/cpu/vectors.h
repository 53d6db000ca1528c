// Vectors of the instruction set in force, ICD_VECTOR_BYTES long, and what compilers do not make of loops by themselves:
// sums that stay in registers, and rows and columns that change places.
// Included once for each instruction set, inside its namespace (kernels_table.h).

template <typename T>
constexpr int64_t kVectorLanes = ICD_VECTOR_BYTES / sizeof(T);

// kCount numbers of T, a register's or fewer. They need not be aligned more than a T.
template <typename T, int64_t kCount>
struct VectorOf {
  typedef T type __attribute__((vector_size(kCount * sizeof(T)), aligned(alignof(T)), may_alias));
};

template <typename T, int64_t kCount = kVectorLanes<T>>
using Vector = typename VectorOf<T, kCount>::type;

template <int64_t kCount, typename T>
inline Vector<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kCount>*>(from);
}

template <typename T>
inline Vector<T> load(const T* from) {
  return load<kVectorLanes<T>>(from);
}

template <typename T, typename V>
inline void store(T* to, const V& vector) {
  *reinterpret_cast<Vector<T, sizeof(V) / sizeof(T)>*>(to) = vector;
}

inline Vector<float> exp_of(const Vector<float>& x) { return exp_bounded<Vector<uint32_t>>(x); }
inline Vector<double> exp_of(const Vector<double>& x) { return exp_bounded_in_double<Vector<uint64_t>>(x); }

constexpr int64_t kPartialSum = 16;  // equal numbers round the same way each time, and a long sum of them drifts

// sums[r] = the sum of `count` vectors that begin at from + places[r], `step` elements apart; partial sums first. count >= 1
template <int64_t kSums, typename T>
inline void sum_vectors(const T* from, const int64_t* places, int64_t step, int64_t count, Vector<T>* sums) {
  for (int64_t r = 0; r < kSums; ++r) sums[r] = load(from + places[r]);
  const int64_t first = count < kPartialSum ? count : kPartialSum;
  for (int64_t k = 1; k < first; ++k) {
    for (int64_t r = 0; r < kSums; ++r) sums[r] += load(from + k * step + places[r]);
  }
  for (int64_t start = first; start < count; start += kPartialSum) {
    Vector<T> partial[kSums];
    for (int64_t r = 0; r < kSums; ++r) partial[r] = load(from + start * step + places[r]);
    for (int64_t k = start + 1; k < start + kPartialSum && k < count; ++k) {
      for (int64_t r = 0; r < kSums; ++r) partial[r] += load(from + k * step + places[r]);
    }
    for (int64_t r = 0; r < kSums; ++r) sums[r] += partial[r];
  }
}

// GCC before 12 has no such shuffles; it takes the plain loops at the end.
#undef ICD_SHUFFLES
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ICD_SHUFFLES 1
#endif
#endif

#if defined(ICD_SHUFFLES)
#if ICD_VECTOR_BYTES == 64
#define ICD_SHUFFLE(a, b, i, j, k, l)                                                                          \
  __builtin_shufflevector(                                                                                     \
      a, b, i, 16 + j, k, 16 + l, 4 + i, 20 + j, 4 + k, 20 + l, 8 + i, 24 + j, 8 + k, 24 + l, 12 + i, 28 + j, \
      12 + k, 28 + l)
#elif ICD_VECTOR_BYTES == 32
#define ICD_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, 8 + j, k, 8 + l, 4 + i, 12 + j, 4 + k, 12 + l)
#else
#define ICD_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, 4 + j, k, 4 + l)
#endif

// Four numbers of each of kVectorLanes/4 rows, side by side.
inline Vector<float> load_fours(const float* rows, int64_t stride) {
#if ICD_VECTOR_BYTES == 64
  __m512 fours = _mm512_castps128_ps512(_mm_loadu_ps(rows));
  fours = _mm512_insertf32x4(fours, _mm_loadu_ps(rows + stride), 1);
  fours = _mm512_insertf32x4(fours, _mm_loadu_ps(rows + 2 * stride), 2);
  return _mm512_insertf32x4(fours, _mm_loadu_ps(rows + 3 * stride), 3);
#elif ICD_VECTOR_BYTES == 32
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows)), _mm_loadu_ps(rows + stride), 1);
#else
  return load(rows);
#endif
}

// The reverse of load_fours.
inline void store_fours(float* rows, int64_t stride, const Vector<float>& fours) {
#if ICD_VECTOR_BYTES == 16
  store(rows, fours);
#else
  store(rows, __builtin_shufflevector(fours, fours, 0, 1, 2, 3));
  store(rows + stride, __builtin_shufflevector(fours, fours, 4, 5, 6, 7));
#endif
#if ICD_VECTOR_BYTES == 64
  store(rows + 2 * stride, __builtin_shufflevector(fours, fours, 8, 9, 10, 11));
  store(rows + 3 * stride, __builtin_shufflevector(fours, fours, 12, 13, 14, 15));
#endif
}

struct FourVectors {
  Vector<float> a, b, c, d;
};

// In each group of four lanes the four vectors hold a 4 x 4 block: its rows and columns change places.
inline FourVectors transposed(const FourVectors& in) {
  const Vector<float> ac = ICD_SHUFFLE(in.a, in.c, 0, 0, 1, 1), ac_end = ICD_SHUFFLE(in.a, in.c, 2, 2, 3, 3);
  const Vector<float> bd = ICD_SHUFFLE(in.b, in.d, 0, 0, 1, 1), bd_end = ICD_SHUFFLE(in.b, in.d, 2, 2, 3, 3);
  return {
      ICD_SHUFFLE(ac, bd, 0, 0, 1, 1), ICD_SHUFFLE(ac, bd, 2, 2, 3, 3), ICD_SHUFFLE(ac_end, bd_end, 0, 0, 1, 1),
      ICD_SHUFFLE(ac_end, bd_end, 2, 2, 3, 3)};
}
#undef ICD_SHUFFLE
#endif

#if defined(ICD_SHUFFLES) && ICD_VECTOR_BYTES > 16
typedef double FourDoubles __attribute__((vector_size(32)));

// Lane r adds up lanes r, 4 + r, .. in float64.
inline FourDoubles sum_of_fours(const Vector<float>& x) {
#if ICD_VECTOR_BYTES == 64
  const __m512d sum = _mm512_maskz_cvtps_pd(255, __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7)) +
      _mm512_maskz_cvtps_pd(255, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
  return __builtin_shufflevector(sum, sum, 0, 1, 2, 3) + __builtin_shufflevector(sum, sum, 4, 5, 6, 7);
#else
  return _mm256_cvtps_pd(__builtin_shufflevector(x, x, 0, 1, 2, 3)) +
      _mm256_cvtps_pd(__builtin_shufflevector(x, x, 4, 5, 6, 7));
#endif
}
#endif

// sums[r] += the sum over the lanes of each of four vectors, in float64.
template <typename T>
inline void add_lanes(const Vector<T>* rows, double* sums) {
#if defined(ICD_SHUFFLES) && ICD_VECTOR_BYTES > 16
  if constexpr (std::is_same_v<T, float>) {
    const FourVectors lanes = transposed({rows[0], rows[1], rows[2], rows[3]});
    const FourDoubles total =
        (sum_of_fours(lanes.a) + sum_of_fours(lanes.b)) + (sum_of_fours(lanes.c) + sum_of_fours(lanes.d));
    for (int64_t r = 0; r < 4; ++r) sums[r] += total[r];
    return;
  }
#endif
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t lane = 0; lane < kVectorLanes<T>; ++lane) sums[r] += static_cast<double>(rows[r][lane]);
  }
}

// Whether kRows rows of `length` numbers of T go by shuffles.
template <int64_t kRows, typename T>
inline bool shuffled(int64_t length) {
#if defined(ICD_SHUFFLES)
  return std::is_same_v<T, float> && kRows % kVectorLanes<float> == 0 && length >= 4;
#else
  return false;
#endif
}

// tile[k, c] = rows[c, k] for k < length, c < kRows; rows are `stride` apart, those of the tile kRows.
template <int64_t kRows, typename T>
inline void transpose(const T* rows, int64_t stride, int64_t length, T* tile) {
  if (!shuffled<kRows, T>(length)) {
    for (int64_t c = 0; c < kRows; ++c) {
      for (int64_t k = 0; k < length; ++k) tile[k * kRows + c] = rows[c * stride + k];
    }
    return;
  }
#if defined(ICD_SHUFFLES)
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t c = 0; c < kRows; c += kVectorLanes<float>) {
      for (int64_t start = 0; start < length; start += 4) {
        const int64_t k = start + 4 > length ? length - 4 : start;  // the last four may overlap the ones before
        const float* from = rows + c * stride + k;
        const FourVectors block = transposed(
            {load_fours(from, 4 * stride), load_fours(from + stride, 4 * stride),
             load_fours(from + 2 * stride, 4 * stride), load_fours(from + 3 * stride, 4 * stride)});
        float* to = tile + k * kRows + c;
        store(to, block.a);
        store(to + kRows, block.b);
        store(to + 2 * kRows, block.c);
        store(to + 3 * kRows, block.d);
      }
    }
  }
#endif
}

// rows[c, k] = tile[k, c]: the reverse of transpose.
template <int64_t kRows, typename T>
inline void transpose_back(const T* tile, int64_t length, T* rows, int64_t stride) {
  if (!shuffled<kRows, T>(length)) {
    for (int64_t c = 0; c < kRows; ++c) {
      for (int64_t k = 0; k < length; ++k) rows[c * stride + k] = tile[k * kRows + c];
    }
    return;
  }
#if defined(ICD_SHUFFLES)
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t c = 0; c < kRows; c += kVectorLanes<float>) {
      for (int64_t start = 0; start < length; start += 4) {
        const int64_t k = start + 4 > length ? length - 4 : start;
        const float* from = tile + k * kRows + c;
        const FourVectors block =
            transposed({load(from), load(from + kRows), load(from + 2 * kRows), load(from + 3 * kRows)});
        float* to = rows + c * stride + k;
        store_fours(to, 4 * stride, block.a);
        store_fours(to + stride, 4 * stride, block.b);
        store_fours(to + 2 * stride, 4 * stride, block.c);
        store_fours(to + 3 * stride, 4 * stride, block.d);
      }
    }
  }
#endif
}
