#include "launch.cuh"
#include "pool.cuh"

namespace icd::cuda {

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) pool_kernel(const __grid_constant__ PoolArguments<T> arguments) {
  __shared__ PoolShared<T> shared;
  pool_block(arguments, shared);
}

template <typename T>
int launch_pool(const PoolArguments<T>& arguments, Stream stream) {
  return launch(pool_kernel<T>, arguments, stream);
}

ICD_BOTH_DTYPES(launch_pool, PoolArguments)

}  // namespace icd::cuda
