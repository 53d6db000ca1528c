// The operators on CPU tensors.
#include <string>

#include "kernels.h"
#include "stages.h"

namespace {

std::string cpu_instruction_set() { return icd::cpu::kernels().instruction_set; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(icd_kernels, CPU, library) { icd::Operators<icd::cpu::Stages>::add_to(library); }

STABLE_TORCH_LIBRARY_IMPL(icd_kernels, CompositeExplicitAutograd, library) {
  library.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
}
