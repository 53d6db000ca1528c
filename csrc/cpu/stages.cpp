#include "stages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "dispatch.h"

namespace icd::cpu {
namespace {

template <typename I>
FeatureMap<I> map_of(const Tensor& map) {
  return {
      .data = static_cast<I*>(map.data_ptr()),
      .batch = map.size(0),
      .channels = map.size(1),
      .height = map.size(2),
      .width = map.size(3),
      .batch_stride = map.stride(0),
      .channel_stride = map.stride(1),
      .height_stride = map.stride(2),
      .width_stride = map.stride(3)};
}

// Asks for huge pages for a large fresh tensor: its first touch otherwise costs a page fault for every 4 KiB, several
// times the work of filling it.
void expect_large_pages(const Tensor& fresh) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 1 << 21;
  const auto address = reinterpret_cast<uintptr_t>(fresh.data_ptr());
  const auto start = (address + kHugePage - 1) / kHugePage * kHugePage;
  const auto stop = (address + fresh.numel() * fresh.element_size()) / kHugePage * kHugePage;
  if (stop > start) madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);
#endif
}

// Between the fine cells (B, finest², K) and all regions (B, N, K): a copy where the regions are not folded.
template <typename T>
Tensor expand(const Tensor& fine, const Regions& regions) {
  if (!regions.folded) return fine;
  const int64_t classes = fine.size(2);
  const Scales scales = scales_of(regions.scales);
  const Tensor logits = empty({fine.size(0), scales.cells, classes}, fine.scalar_type(), fine);
  in_parallel(fine.size(0), scales.cells * classes, [&](int64_t begin, int64_t end) {
    logit_kernels_for<T>().expand(
        data_of<T>(fine), regions.finest(), scales, classes, written<T>(logits), begin, end);
  });
  return logits;
}

// (B, cells, K) as [B·cells, K]
Tensor rows_of(const Tensor& cells) {
  return view(cells, {cells.size(0) * cells.size(1), cells.size(2)}, {cells.size(2), 1});
}

// (B, base cells, C) -> (B, N, K)
template <typename T>
Tensor logits_of(const Network& network, const Tensor& pooled) {
  const Tensor cells = rows_of(pooled), columns = transposed(to_dtype(network.weight, pooled.scalar_type()));
  const int64_t classes = network.weight.size(0);
  const Tensor logits = empty({pooled.size(0), pooled.size(1), classes}, pooled.scalar_type(), pooled);
  const Tensor out = rows_of(logits);
  if (network.bias.has_value()) {
    const Tensor bias = to_dtype(*network.bias, pooled.scalar_type());
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias.get(), cells.get(), columns.get(), 1, 1));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), cells.get(), columns.get()));
  }
  return expand<T>(logits, network.regions);
}

// The sum of the rows of a matrix, column by column, in float64.
template <typename T>
Tensor column_sums(const Tensor& matrix) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const Tensor sums = empty({columns}, matrix.scalar_type(), matrix);
  in_parallel(columns, rows, [&](int64_t begin, int64_t end) {
    std::vector<double> totals(end - begin);
    for (int64_t row = 0; row < rows; ++row) {
      const T* values = data_of<T>(matrix) + row * columns;
      for (int64_t k = begin; k < end; ++k) totals[k - begin] += static_cast<double>(values[k]);
    }
    for (int64_t k = begin; k < end; ++k) written<T>(sums)[k] = static_cast<T>(totals[k - begin]);
  });
  return sums;
}

}  // namespace

template <typename T>
std::vector<Tensor> Stages::pool(Call&, const std::vector<Network>& networks) {
  std::vector<Tensor> all;
  for (const Network& network : networks) {
    const Tensor& features = network.features;
    const Scales scales = scales_of(network.regions.base);
    const Tensor pooled = empty({features.size(0), scales.cells, features.size(1)}, scalar_type_of<T>(), features);
    dispatch_map<T>(features.scalar_type(), [&](auto i) {
      using I = decltype(i);
      const MapKernels<I, T>& kernel = map_kernels_for<I, T>();
      const FeatureMap<I> map = map_of<I>(features);
      T* out = written<T>(pooled);
      in_parallel(kernel.items(map), map.height * map.width * 16, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<T[]> scratch(new T[kernel.scratch(map, scales)]);
        kernel.pool(map, scales, out, scratch.get(), begin, end);
      });
    });
    all.push_back(pooled);
  }
  return all;
}

template <typename T>
Stages::Logits<T> Stages::project(
    const Call&, const std::vector<Network>& networks, const std::vector<Tensor>& pooled) {
  Logits<T> logits = {.student = logits_of<T>(networks[0], pooled[0]), .teacher = {}};
  if (networks.size() > 1) logits.teacher = logits_of<T>(networks[1], pooled[1]);
  return logits;
}

template <typename T>
Tensor Stages::fold(const Call&, const Tensor& grad_logits, const Regions& regions) {
  const Tensor grad = torch::stable::contiguous(swapped(grad_logits));
  if (!regions.folded) return grad;
  const int64_t finest = regions.finest(), classes = grad.size(2);
  const Scales scales = scales_of(regions.scales);
  const Tensor grad_fine = empty({grad.size(0), finest * finest, classes}, grad.scalar_type(), grad);
  in_parallel(grad.size(0), scales.cells * classes, [&](int64_t begin, int64_t end) {
    logit_kernels_for<T>().fold(data_of<T>(grad), finest, scales, classes, written<T>(grad_fine), begin, end);
  });
  return grad_fine;
}

template <typename T>
Tensor Stages::scale(const Call&, const Tensor& saved, const Tensor& upstream, ScalarType dtype) {
  const Tensor weights = torch::stable::contiguous(to_dtype(upstream, saved.scalar_type()));
  const Tensor scaled = empty(saved.sizes(), saved.scalar_type(), saved);
  const int64_t size = saved.size(1) * saved.size(2), step = upstream.dim() == 0 ? 0 : 1;
  in_parallel(saved.size(0), size, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const T weight = data_of<T>(weights)[image * step];
      const T* from = data_of<T>(saved) + image * size;
      T* to = written<T>(scaled) + image * size;
      for (int64_t e = 0; e < size; ++e) to[e] = from[e] * weight;
    }
  });
  return to_dtype(scaled, dtype);
}

template <typename T>
Tensor Stages::unpool(const Call&, const Tensor& grad_pooled, const Layout& layout, const Regions& regions) {
  const Scales scales = scales_of(regions.base);
  const Tensor grad = empty_strided(layout.size, layout.stride, layout.dtype, grad_pooled);
  expect_large_pages(grad);
  dispatch_map<T>(layout.dtype, [&](auto o) {
    using O = decltype(o);
    const MapKernels<O, T>& kernel = map_kernels_for<O, T>();
    const FeatureMap<O> map = map_of<O>(grad);
    const T* in = data_of<T>(grad_pooled);
    in_parallel(kernel.items(map), map.height * map.width * 16, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> scratch(new T[kernel.scratch(map, scales)]);
      kernel.unpool(map, scales, in, scratch.get(), begin, end);
    });
  });
  return grad;
}

template <typename T>
Gradients Stages::network_backward(const Call& call, const NetworkGradient& gradient) {
  const auto& [grad_cells, upstream, pooled, weight, layout, regions, wanted] = gradient;
  const ScalarType math = scalar_type_of<T>();
  const Tensor scaled = upstream == nullptr ? grad_cells : scale<T>(call, grad_cells, *upstream, math);
  const Tensor rows = rows_of(scaled);  // [B·cells, K]
  Tensor features = empty({0}, layout.dtype, scaled);
  Tensor weights = empty({0}, weight.scalar_type(), weight);
  Tensor bias = empty({0}, layout.bias_dtype, scaled);
  if (wanted[0]) {
    const Tensor grad_pooled = product(rows, to_dtype(weight, math));  // [B·cells, C]
    features = unpool<T>(call, grad_pooled, layout, regions);
  }
  if (wanted[1]) weights = to_dtype(product(transposed(rows), rows_of(pooled)), weight.scalar_type());
  if (wanted[2]) bias = to_dtype(column_sums<T>(rows), layout.bias_dtype);
  return {features, weights, bias};
}

#define ICD_STAGES(T)                                                                                              \
  template std::vector<Tensor> Stages::pool<T>(Call&, const std::vector<Network>&);                                \
  template Stages::Logits<T> Stages::project<T>(                                                                   \
      const Call&, const std::vector<Network>&, const std::vector<Tensor>&);                                       \
  template Tensor Stages::fold<T>(const Call&, const Tensor&, const Regions&);                                     \
  template Tensor Stages::scale<T>(const Call&, const Tensor&, const Tensor&, ScalarType);                         \
  template Tensor Stages::unpool<T>(const Call&, const Tensor&, const Layout&, const Regions&);                    \
  template Gradients Stages::network_backward<T>(const Call&, const NetworkGradient&);

ICD_STAGES(float)
ICD_STAGES(double)

}  // namespace icd::cpu
