// Puts the operators in the library for CUDA tensors. Compiled only with the kernels: `cuda_compiled` says they are there.
#include <torch/library.h>

#include "launcher.h"

TORCH_LIBRARY_IMPL(icd_kernels, CUDA, library) {
  library.impl("region_features", icd::cuda::region_features);
  library.impl("region_features_backward", icd::cuda::region_features_backward);
  library.impl("region_logits", icd::cuda::region_logits);
  library.impl("region_logits_backward", icd::cuda::region_logits_backward);
  library.impl("gram_kl", icd::cuda::gram_kl);
  library.impl("gram_kl_backward", icd::cuda::gram_kl_backward);
  library.impl("icd_loss", icd::cuda::icd_loss);
  library.impl("icd_loss_backward", icd::cuda::icd_loss_backward);
}

TORCH_LIBRARY_FRAGMENT(icd_kernels, library) {
  library.def("cuda_compiled() -> str", []() { return std::string(ICD_CUDA_BUILD); });
}
