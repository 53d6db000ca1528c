// The operators on CUDA tensors. Compiled only with the kernels: `cuda_compiled` says they are there.
#include <string>

#include "stages.h"

namespace {

std::string cuda_compiled() { return ICD_CUDA_BUILD; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(icd_kernels, CUDA, library) { icd::Operators<icd::cuda::Stages>::add_to(library); }

STABLE_TORCH_LIBRARY_FRAGMENT(icd_kernels, library) { library.def("cuda_compiled() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(icd_kernels, CompositeExplicitAutograd, library) {
  library.impl("cuda_compiled", TORCH_BOX(&cuda_compiled));
}
