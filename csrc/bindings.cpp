// The extension's operators: their schemas, and the module Python imports to load them.
// The gradient's layout is given as size, stride and dtypes; `wanted` says which of the gradients by (features, weight,
// bias) to compute. See icd_kernels/operators.py for the tensors that pass from forward to backward.
#include <Python.h>
#include <torch/library.h>

#define ICD_GRAM_OPTIONS "int[] scales, float[] scale_weights, str gram, str normalize, float temperature, str reduction"
#define ICD_OPTIONS \
  "int[] scales, float[] scale_weights, str gram, str pyramid, str normalize, float temperature, str reduction"
#define ICD_LAYOUT "SymInt[] size, SymInt[] stride, ScalarType dtype, ScalarType bias_dtype"

TORCH_LIBRARY(icd_kernels, library) {
  library.def("region_features(Tensor features, int[] scales) -> Tensor");
  library.def(
      "region_features_backward(Tensor grad, SymInt[] size, SymInt[] stride, ScalarType dtype, int[] scales) -> Tensor");
  library.def(
      "region_logits(Tensor features, Tensor weight, Tensor? bias, int[] scales, str pyramid, bool save_pooled)"
      " -> (Tensor logits, Tensor pooled)");
  library.def(
      "region_logits_backward(Tensor grad_logits, Tensor pooled, Tensor weight, " ICD_LAYOUT
      ", int[] scales, str pyramid, bool[] wanted) -> (Tensor features, Tensor weight, Tensor bias)");
  library.def(
      "gram_kl(Tensor student_logits, Tensor teacher_logits, " ICD_GRAM_OPTIONS
      ", bool save_gradient) -> (Tensor loss, Tensor saved)");
  library.def("gram_kl_backward(Tensor grad_loss, Tensor saved, ScalarType dtype, " ICD_GRAM_OPTIONS ") -> Tensor");
  library.def(
      "icd_loss(Tensor student_features, Tensor student_weight, Tensor? student_bias, Tensor teacher_features,"
      " Tensor teacher_weight, Tensor? teacher_bias, " ICD_OPTIONS
      ", bool save_gradient, bool save_pooled) -> (Tensor loss, Tensor saved, Tensor pooled)");
  library.def(
      "icd_loss_backward(Tensor grad_loss, Tensor saved, Tensor pooled, Tensor weight, " ICD_LAYOUT ", " ICD_OPTIONS
      ", bool[] wanted) -> (Tensor features, Tensor weight, Tensor bias)");
  library.def(
      "row_losses(Tensor student_logits, Tensor teacher_logits, Tensor target, float[] factors, float temperature,"
      " float complementary_weight, bool save_gradient) -> (Tensor losses, Tensor saved)");
}

// Loading the library registers the operators; the module itself is empty.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
