// The extension's operators: their schemas.
// icd_kernels/operators.py says what they compute, what their numbers mean and which tensors pass to backward.
#include "common/tensor.h"

#define ICD_GRAM \
  "int[] scales, float[] cell_weights, int gram, float[] normalize, float temperature, int reduction"
#define ICD_LAYOUT "SymInt[] size, SymInt[] stride, ScalarType dtype, ScalarType bias_dtype"

STABLE_TORCH_LIBRARY(icd_kernels, library) {
  library.def("region_features(Tensor features, int[] scales) -> Tensor");
  library.def(
      "region_features_backward(Tensor grad, SymInt[] size, SymInt[] stride, ScalarType dtype, int[] scales) -> Tensor");
  library.def(
      "region_logits(Tensor features, Tensor weight, Tensor? bias, int[] scales, int finest, bool save_pooled)"
      " -> (Tensor logits, Tensor pooled)");
  library.def(
      "region_logits_backward(Tensor grad_logits, Tensor pooled, Tensor weight, " ICD_LAYOUT
      ", int[] scales, int finest, bool[] wanted) -> (Tensor features, Tensor weight, Tensor bias)");
  library.def(
      "gram_kl(Tensor student_logits, Tensor teacher_logits, " ICD_GRAM
      ", bool save_gradient) -> (Tensor loss, Tensor saved)");
  library.def("gram_kl_backward(Tensor grad_loss, Tensor saved, ScalarType dtype, " ICD_GRAM ") -> Tensor");
  library.def(
      "icd_loss(Tensor student_features, Tensor student_weight, Tensor? student_bias, Tensor teacher_features,"
      " Tensor teacher_weight, Tensor? teacher_bias, " ICD_GRAM
      ", int student_finest, int teacher_finest, bool save_gradient, bool save_pooled)"
      " -> (Tensor loss, Tensor saved, Tensor pooled)");
  library.def(
      "icd_loss_backward(Tensor grad_loss, Tensor saved, Tensor pooled, Tensor weight, " ICD_LAYOUT ", " ICD_GRAM
      ", int finest, bool[] wanted) -> (Tensor features, Tensor weight, Tensor bias)");
  library.def(
      "row_losses(Tensor student_logits, Tensor teacher_logits, Tensor target, float[] factors, float temperature,"
      " float complementary_weight, bool save_gradient) -> (Tensor losses, Tensor saved)");
  // Which of the compiled instruction sets the CPU kernels take here.
  library.def("cpu_instruction_set() -> str");
}
