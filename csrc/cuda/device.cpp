#include "device.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <string>

#include "../common/tensor.h"

namespace icd::cuda {
namespace {

void check_call(cudaError_t status, const char* what) {
  check<std::runtime_error>(status == cudaSuccess, "icd_kernels: ", what, ": ", cudaGetErrorString(status));
}

int attribute(cudaDeviceAttr name, int32_t device) {
  int value = 0;
  check_call(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

DeviceGuard::DeviceGuard(int32_t device) {
  DeviceGuardHandle guard = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(device, &guard));
  guard_ = guard;
}

DeviceGuard::~DeviceGuard() { aoti_torch_delete_device_guard(static_cast<DeviceGuardHandle>(guard_)); }

Stream current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<Stream>(stream);
}

int64_t multiprocessors(int32_t device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

double float64_cost(int32_t device) { return attribute(cudaDevAttrSingleToDoublePrecisionPerfRatio, device); }

void clear(void* data, size_t bytes, Stream stream) {
  check_call(cudaMemsetAsync(data, 0, bytes, stream), "cudaMemsetAsync");
}

void check_launch(int error, const char* kernel) {
  const auto status = static_cast<cudaError_t>(error);
  check<std::runtime_error>(
      status == cudaSuccess, "icd_kernels: the CUDA kernel '", kernel, "' could not be launched: ",
      cudaGetErrorString(status), ". The extension must be built for this GPU: set TORCH_CUDA_ARCH_LIST to its ",
      "compute capability and build again");
}

}  // namespace icd::cuda
