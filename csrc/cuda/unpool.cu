#include "launch.cuh"
#include "unpool.cuh"

namespace icd::cuda {

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) unpool_kernel(const __grid_constant__ UnpoolArguments<T> arguments) {
  unpool_block(arguments);
}

template <typename T>
int launch_unpool(const UnpoolArguments<T>& arguments, Stream stream) {
  return launch(unpool_kernel<T>, arguments, stream);
}

ICD_BOTH_DTYPES(launch_unpool, UnpoolArguments)

}  // namespace icd::cuda
