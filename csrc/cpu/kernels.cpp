// Picks the CPU kernels of the best instruction set this machine has.
#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace icd::cpu {
namespace {

const Kernels& pick() {
#if defined(__x86_64__)
  const char* limit = std::getenv("ICD_KERNELS_ISA");
  const bool baseline_only = limit != nullptr && std::strcmp(limit, "baseline") == 0;
  const bool below_avx512 = limit != nullptr && std::strcmp(limit, "avx512") != 0;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (avx512 && !below_avx512) return kernels_avx512;
  if (avx2 && !baseline_only) return kernels_avx2;
#endif
  return kernels_baseline;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& picked = pick();
  return picked;
}

}  // namespace icd::cpu
