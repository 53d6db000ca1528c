// The class Gram of every cell: by the exact sum, without shifts where that can be, or by the linear one.
// Included once for each instruction set, inside its namespace (kernels_table.h).

// In elements of T, with room to start on a cache line.
template <typename T>
inline int64_t class_scratch(int64_t classes) {
  const int64_t exact = kClassArrays * pad(classes) * static_cast<int64_t>(sizeof(T));
  const int64_t linear = linear_scratch_bytes(classes);
  const int64_t symmetric = classes <= kMostSymmetric ? SymmetricCell<T>::scratch_bytes(classes) : 0;
  const int64_t sums = exact > linear ? exact : linear;
  return ((sums > symmetric ? sums : symmetric) + 64) / static_cast<int64_t>(sizeof(T)) + 1;
}

template <typename T>
inline T* align(T* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

template <bool kGradient, typename T>
inline T class_loss(
    ClassSum sum, const T* student, const T* teacher, int64_t classes, T temperature, T weight, T* grad, T* scratch) {
  const CellSize size = size_of(student, teacher, classes, temperature);
  T loss;
  // Of few classes the exact sum is faster than the plan of another.
  const int64_t few = size.divergence < size.close_rows() ? kFewClasses : 2 * kFewClasses;
  if (sum == ClassSum::automatic && classes <= few &&
      try_symmetric<kGradient>(size, student, teacher, classes, temperature, weight, grad, scratch, loss)) {
    return loss;
  }
  if (sum != ClassSum::exact &&
      try_linear<kGradient, T>(
          size, student, teacher, classes, temperature, weight, grad, scratch, loss, sum == ClassSum::linear)) {
    return loss;
  }
  if (try_symmetric<kGradient>(size, student, teacher, classes, temperature, weight, grad, scratch, loss)) return loss;
  return class_cell<kGradient>(student, teacher, classes, temperature, weight, grad, scratch);
}

template <typename T>
void class_gram(
    ClassSum sum, const T* student, const T* teacher, int64_t classes, T temperature, const T* row_weights, T* losses,
    T* grads, T* scratch, int64_t begin, int64_t end) {
  T* aligned = align(scratch);
  for (int64_t row = begin; row < end; ++row) {
    const T* s = student + row * classes;
    const T* t = teacher + row * classes;
    T* grad = grads == nullptr ? nullptr : grads + row * classes;
    const T weight = row_weights[row];
    if (weight == T(0)) {
      losses[row] = T(0);
      if (grad != nullptr) clear(grad, classes);
    } else if (grad == nullptr) {
      losses[row] = class_loss<false, T>(sum, s, t, classes, temperature, weight, nullptr, aligned);
    } else {
      losses[row] = class_loss<true>(sum, s, t, classes, temperature, weight, grad, aligned);
    }
  }
}
