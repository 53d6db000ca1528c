#include "gram.cuh"
#include "launch.cuh"

namespace icd::cuda {

// Two blocks of the class form in float32 fit on a multiprocessor.
template <typename T, int kTile>
constexpr int kLeastBlocks = kTile == 0 && sizeof(T) == sizeof(float) ? 2 : 1;

template <typename T, int kTile>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, kTile>)
    gram_kernel(const __grid_constant__ GramArguments<T> arguments) {
  __shared__ GramShared<T, kTile> shared;
  gram_block<T, kTile>(arguments, shared);
}

template <typename T>
int launch_gram(const GramArguments<T>& arguments, Stream stream) {
  if (arguments.gram == Gram::class_) return launch(gram_kernel<T, 0>, arguments, stream);
  if (arguments.tile == 16) return launch(gram_kernel<T, 16>, arguments, stream);
  return launch(gram_kernel<T, kLargePointTile<T>>, arguments, stream);
}

ICD_BOTH_DTYPES(launch_gram, GramArguments)

}  // namespace icd::cuda
