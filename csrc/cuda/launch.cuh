// One kernel's launch.
#pragma once

#include <cuda_runtime.h>

#include "kernels.h"

namespace icd::cuda {

template <typename Arguments>
int launch(void (*kernel)(const Arguments), const Arguments& arguments, Stream stream) {
  const int64_t blocks = blocks_of(arguments);
  if (blocks == 0) return cudaSuccess;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments);
  return cudaGetLastError();
}

// Compiles the launch function for both dtypes of the math.
#define ICD_BOTH_DTYPES(function, Arguments)                              \
  template int function<float>(const Arguments<float>&, Stream stream);   \
  template int function<double>(const Arguments<double>&, Stream stream);

}  // namespace icd::cuda
