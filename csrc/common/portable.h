// What lets one header serve the host compiler and nvcc.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ICD_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Internal linkage and forced inlining: the CPU kernels are compiled once for each instruction set, and a shared
// out-of-line copy would be whichever the linker kept.
#define ICD_HOST_DEVICE static inline __attribute__((always_inline))
#endif
