#include "device.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

namespace icd::cuda {

Stream current_stream(c10::DeviceIndex device) { return c10::cuda::getCurrentCUDAStream(device).stream(); }

namespace {

int attribute(cudaDeviceAttr name, c10::DeviceIndex device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

}  // namespace

int64_t multiprocessors(c10::DeviceIndex device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

double float64_cost(c10::DeviceIndex device) { return attribute(cudaDevAttrSingleToDoublePrecisionPerfRatio, device); }

void clear(void* data, size_t bytes, Stream stream) { C10_CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, stream)); }

void check_launch(int error, const char* kernel) {
  const auto status = static_cast<cudaError_t>(error);
  TORCH_CHECK(
      status == cudaSuccess, "icd_kernels: the CUDA kernel '", kernel, "' could not be launched: ",
      cudaGetErrorString(status), ". The extension must be built for this GPU: set TORCH_CUDA_ARCH_LIST to its ",
      "compute capability and build again");
}

}  // namespace icd::cuda
