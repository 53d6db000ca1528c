#include "launch.cuh"
#include "logits.cuh"

namespace icd::cuda {

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) rows_kernel(const __grid_constant__ RowsArguments<T> arguments) {
  rows_block(arguments);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) fold_kernel(const __grid_constant__ FoldArguments<T> arguments) {
  fold_block(arguments);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) scale_kernel(const __grid_constant__ ScaleArguments<T> arguments) {
  scale_block(arguments);
}

template <typename T>
int launch_rows(const RowsArguments<T>& arguments, Stream stream) {
  return launch(rows_kernel<T>, arguments, stream);
}

template <typename T>
int launch_fold(const FoldArguments<T>& arguments, Stream stream) {
  return launch(fold_kernel<T>, arguments, stream);
}

template <typename T>
int launch_scale(const ScaleArguments<T>& arguments, Stream stream) {
  return launch(scale_kernel<T>, arguments, stream);
}

ICD_BOTH_DTYPES(launch_rows, RowsArguments)
ICD_BOTH_DTYPES(launch_fold, FoldArguments)
ICD_BOTH_DTYPES(launch_scale, ScaleArguments)

}  // namespace icd::cuda
