#include "launch.cuh"
#include "product.cuh"

namespace icd::cuda {

template <typename T, int kTile>
__global__ void __launch_bounds__(kThreads, 1) product_kernel(const __grid_constant__ ProductArguments<T> arguments) {
  __shared__ ProductBlockShared<T, kTile> shared;
  product_block<T, kTile>(arguments, shared);
}

template <typename T>
int launch_product(const ProductArguments<T>& arguments, Stream stream) {
  if constexpr (sizeof(T) == sizeof(float)) {  // in float64 the sums of the large tile do not fit in registers
    if (arguments.tile == 128) return launch(product_kernel<T, 128>, arguments, stream);
  }
  return launch(product_kernel<T, 64>, arguments, stream);
}

ICD_BOTH_DTYPES(launch_product, ProductArguments)

}  // namespace icd::cuda
