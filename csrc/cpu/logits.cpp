#include "logits.h"

#include <ATen/Parallel.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <memory>

#include "dispatch.h"

namespace icd::cpu {
namespace {

template <typename I>
FeatureMap<I> map_of(const Tensor& map) {
  return {
      map.data_ptr<I>(), map.size(0),   map.size(1),   map.size(2),  map.size(3),
      map.stride(0),     map.stride(1), map.stride(2), map.stride(3)};
}

// Asks for huge pages for a large fresh tensor: its first touch otherwise costs a page fault for every 4 KiB, several
// times the work of filling it.
void expect_large_pages(const Tensor& fresh) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 1 << 21;
  const auto start = (reinterpret_cast<uintptr_t>(fresh.data_ptr()) + kHugePage - 1) / kHugePage * kHugePage;
  const auto stop = (reinterpret_cast<uintptr_t>(fresh.data_ptr()) + fresh.nbytes()) / kHugePage * kHugePage;
  if (stop > start) madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);
#endif
}

// Between the fine cells (B, finest², K) and all regions (B, N, K): a copy where the regions are not folded.
Tensor expand(const Tensor& fine, const Regions& regions) {
  if (!regions.folded) return fine;
  const int64_t classes = fine.size(2), finest = regions.base[0];
  const Scales scales = scales_of(regions.scales);
  Tensor logits = at::empty({fine.size(0), scales.cells, classes}, fine.options());
  dispatch_math(fine.scalar_type(), [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, fine.size(0), grain(scales.cells * classes), [&](int64_t begin, int64_t end) {
      logit_kernels_for<T>().expand(
          fine.data_ptr<T>(), finest, scales, classes, logits.data_ptr<T>(), begin, end);
    });
  });
  return logits;
}

}  // namespace

Tensor unpool(
    const Tensor& grad_pooled, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype,
    const Regions& regions) {
  const Scales scales = scales_of(regions.base);
  Tensor grad = at::empty_strided(size, stride, grad_pooled.options().dtype(dtype));
  expect_large_pages(grad);
  dispatch_map(dtype, grad_pooled.scalar_type(), [&](auto o, auto t) {
    using O = decltype(o);
    using T = decltype(t);
    const MapKernels<O, T>& kernel = map_kernels_for<O, T>();
    const FeatureMap<O> map = map_of<O>(grad);
    const T* in = grad_pooled.data_ptr<T>();
    at::parallel_for(0, kernel.items(map), grain(map.height * map.width * 16), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.scratch(map, scales)]);
      kernel.unpool(map, scales, in, scratch.get(), begin, end);
    });
  });
  return grad;
}

Tensor pool(const Tensor& features, const Regions& regions, at::ScalarType dtype) {
  const Scales scales = scales_of(regions.base);
  Tensor pooled = at::empty({features.size(0), scales.cells, features.size(1)}, features.options().dtype(dtype));
  dispatch_map(features.scalar_type(), dtype, [&](auto i, auto t) {
    using I = decltype(i);
    using T = decltype(t);
    const MapKernels<I, T>& kernel = map_kernels_for<I, T>();
    const FeatureMap<I> map = map_of<I>(features);
    T* out = pooled.data_ptr<T>();
    at::parallel_for(0, kernel.items(map), grain(map.height * map.width * 16), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.scratch(map, scales)]);
      kernel.pool(map, scales, out, scratch.get(), begin, end);
    });
  });
  return pooled;
}

Tensor fold(const Tensor& grad, const Regions& regions) {
  if (!regions.folded) return grad;
  const int64_t classes = grad.size(2), finest = regions.base[0];
  const Scales scales = scales_of(regions.scales);
  Tensor grad_fine = at::empty({grad.size(0), finest * finest, classes}, grad.options());
  dispatch_math(grad.scalar_type(), [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, grad.size(0), grain(scales.cells * classes), [&](int64_t begin, int64_t end) {
      logit_kernels_for<T>().fold(
          grad.data_ptr<T>(), finest, scales, classes, grad_fine.data_ptr<T>(), begin, end);
    });
  });
  return grad_fine;
}

Tensor project(const Tensor& pooled, const Tensor& weight, const Optional& bias, const Regions& regions) {
  const at::ScalarType dtype = pooled.scalar_type();
  const Tensor cells = pooled.flatten(0, 1), columns = weight.to(dtype).t();
  Tensor logits = bias.has_value() ? at::addmm(bias->to(dtype), cells, columns) : at::mm(cells, columns);
  return expand(logits.view({pooled.size(0), pooled.size(1), weight.size(0)}), regions);
}

std::tuple<Tensor, Tensor, Tensor> network_backward(
    const Tensor& grad_cells, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size, at::IntArrayRef stride,
    at::ScalarType dtype, at::ScalarType bias_dtype, const Regions& regions, const c10::List<bool>& wanted) {
  const auto options = grad_cells.options();
  const Tensor grad_rows = grad_cells.flatten(0, 1);  // [B·cells, K]
  Tensor features = at::empty({0}, options.dtype(dtype));
  Tensor weights = at::empty({0}, weight.options());
  Tensor bias = at::empty({0}, options.dtype(bias_dtype));
  if (wanted[0]) {
    const Tensor grad_pooled = at::mm(grad_rows, weight.to(grad_rows.scalar_type()));
    features = unpool(grad_pooled, size, stride, dtype, regions);
  }
  if (wanted[1]) weights = at::mm(grad_rows.t(), pooled.flatten(0, 1)).to(weight.scalar_type());
  if (wanted[2]) bias = grad_rows.sum(0).to(bias_dtype);
  return {features, weights, bias};
}

}  // namespace icd::cpu
