// The launch functions of csrc/cuda/kernels.h, running the kernels' own source on the host.
#include "cuda_on_host.h"
// The kernels come after what stands in for CUDA.
#include "../../csrc/cuda/gram.cuh"
#include "../../csrc/cuda/pool.cuh"
#include "../../csrc/cuda/product.cuh"
#include "../../csrc/cuda/logits.cuh"
#include "../../csrc/cuda/unpool.cuh"

namespace icd::cuda {
namespace {

// Runs body(shared) in every thread.
template <typename Shared, typename Arguments, typename Body>
int run(const Arguments& arguments, Body body) {
  host_cuda::run_grid(blocks_of(arguments), sizeof(Shared), [&](void* memory) {
    const auto address = (reinterpret_cast<uintptr_t>(memory) + 15) / 16 * 16;
    body(*reinterpret_cast<Shared*>(address));
  });
  return 0;
}

struct Nothing {};

}  // namespace

template <typename T>
int launch_pool(const PoolArguments<T>& arguments, Stream) {
  return run<PoolShared<T>>(arguments, [&](auto& shared) { pool_block(arguments, shared); });
}

template <typename T>
int launch_product(const ProductArguments<T>& arguments, Stream) {
  if (arguments.tile == 64) {
    return run<ProductBlockShared<T, 64>>(arguments, [&](auto& shared) { product_block<T, 64>(arguments, shared); });
  }
  return run<ProductBlockShared<T, 128>>(arguments, [&](auto& shared) { product_block<T, 128>(arguments, shared); });
}

template <typename T>
int launch_rows(const RowsArguments<T>& arguments, Stream) {
  return run<Nothing>(arguments, [&](auto&) { rows_block(arguments); });
}

template <typename T>
int launch_gram(const GramArguments<T>& arguments, Stream) {
  if (arguments.gram == Gram::class_) {
    return run<GramShared<T, 0>>(arguments, [&](auto& shared) { gram_block<T, 0>(arguments, shared); });
  }
  if (arguments.tile == 16) {
    return run<GramShared<T, 16>>(arguments, [&](auto& shared) { gram_block<T, 16>(arguments, shared); });
  }
  constexpr int kTile = kLargePointTile<T>;
  return run<GramShared<T, kTile>>(arguments, [&](auto& shared) { gram_block<T, kTile>(arguments, shared); });
}

template <typename T>
int launch_fold(const FoldArguments<T>& arguments, Stream) {
  return run<Nothing>(arguments, [&](auto&) { fold_block(arguments); });
}

template <typename T>
int launch_scale(const ScaleArguments<T>& arguments, Stream) {
  return run<Nothing>(arguments, [&](auto&) { scale_block(arguments); });
}

template <typename T>
int launch_unpool(const UnpoolArguments<T>& arguments, Stream) {
  return run<Nothing>(arguments, [&](auto&) { unpool_block(arguments); });
}

#define ICD_EMULATED(T)                                            \
  template int launch_pool<T>(const PoolArguments<T>&, Stream);       \
  template int launch_product<T>(const ProductArguments<T>&, Stream); \
  template int launch_rows<T>(const RowsArguments<T>&, Stream);       \
  template int launch_gram<T>(const GramArguments<T>&, Stream);       \
  template int launch_fold<T>(const FoldArguments<T>&, Stream);       \
  template int launch_scale<T>(const ScaleArguments<T>&, Stream);     \
  template int launch_unpool<T>(const UnpoolArguments<T>&, Stream);

ICD_EMULATED(float)
ICD_EMULATED(double)

}  // namespace icd::cuda
