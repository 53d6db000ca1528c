#include "gram.cuh"
#include "launch.cuh"

namespace icd::cuda {

template <typename T, int kTile>
__global__ void __launch_bounds__(kThreads, 1) gram_kernel(const __grid_constant__ GramArguments<T> arguments) {
  __shared__ GramShared<T, kTile> shared;
  gram_block<T, kTile>(arguments, shared);
}

template <typename T>
int launch_gram(const GramArguments<T>& arguments, Stream stream) {
  if (arguments.form == Form::class_) return launch(gram_kernel<T, 0>, arguments, stream);
  if (arguments.tile == 16) return launch(gram_kernel<T, 16>, arguments, stream);
  return launch(gram_kernel<T, kLargePointTile<T>>, arguments, stream);
}

ICD_BOTH_DTYPES(launch_gram, GramArguments)

}  // namespace icd::cuda
