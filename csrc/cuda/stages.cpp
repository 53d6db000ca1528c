#include "stages.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

namespace icd::cuda {
namespace {

int64_t ceil_divide(int64_t count, int64_t step) { return (count + step - 1) / step; }

template <typename T>
PooledMap<T> pooled_map(const Network& network, const Tensor& pooled) {
  PooledMap<T> net = {map_of(network.features), Access::planes, scales_of(network.regions.base), pooled.data_ptr<T>(), 1, 0};
  const FeatureMap& map = net.map;
  const int64_t row = map.height * map.width + 1, cells = net.scales.cells;
  net.access = access_of(map);
  if (net.access != Access::planes) {
    net.channel_blocks = ceil_divide(map.channels, warp_channels(map, net.access));
    net.blocks = ceil_divide(map.batch * net.channel_blocks * cells, kWarps);
  } else if (row <= pool_tile<T>()) {
    const int64_t planes = std::min(kPoolChannels, pool_tile<T>() / row);
    net.channel_blocks = ceil_divide(map.channels, planes);
    net.blocks = map.batch * net.channel_blocks;
  } else {
    net.access = Access::large_planes;
    net.blocks = ceil_divide(map.batch * map.channels * cells, kWarps);
  }
  return net;
}

// Blocks that keep every multiprocessor busy for a while.
constexpr int64_t kWaves = 2;
constexpr int64_t kMostSplits = 16;
constexpr int64_t kLeastDepth = 128;  // of a split
constexpr int64_t kStep = 16;         // a split is whole steps long

template <typename T>
int64_t tiles_of(const Product<T>& product, int64_t tile) {
  return ceil_divide(product.rows, tile) * ceil_divide(product.columns, tile);
}

// Large tiles where there are enough of them, for they read less; the depth in parts where there are too few tiles.
template <typename T>
void plan_products(ProductArguments<T>& arguments, std::initializer_list<bool> may_split, int64_t processors) {
  int64_t large = 0, small = 0;
  for (int i = 0; i < arguments.count; ++i) {
    large += tiles_of(arguments.products[i], 128);
    small += tiles_of(arguments.products[i], 64);
  }
  arguments.tile = std::is_same_v<T, float> && large >= kWaves * processors ? 128 : 64;
  const int64_t wanted = ceil_divide(kWaves * processors, std::max<int64_t>(1, small));
  for (int i = 0; i < arguments.count; ++i) {
    Product<T>& product = arguments.products[i];
    product.row_tiles = ceil_divide(product.rows, arguments.tile);
    product.column_tiles = ceil_divide(product.columns, arguments.tile);
    const int64_t most = std::clamp<int64_t>(product.depth / kLeastDepth, 1, kMostSplits);
    const int64_t splits = may_split.begin()[i] ? std::min(wanted, most) : 1;
    product.split_depth = std::max<int64_t>(1, ceil_divide(ceil_divide(product.depth, splits), kStep)) * kStep;
    product.splits = std::max<int64_t>(1, ceil_divide(product.depth, product.split_depth));
  }
}

template <typename T>
Product<T> product_of(Matrix left, Matrix right, int64_t rows, int64_t columns, int64_t depth) {
  return {left, right, rows, columns, depth, 1, depth, 0, 0, nullptr, false};
}

}  // namespace

Tensor new_counters(const Tensor& like) { return at::empty({kCounters}, like.options().dtype(at::kInt)); }

void clear_counters(const Call& call, const Tensor& counters) {
  clear(counters.data_ptr(), counters.nbytes(), call.stream);
}

template <typename T>
std::vector<Tensor> pool(const Call& call, const std::vector<Network>& networks, const Tensor& counters) {
  PoolArguments<T> arguments = {};
  arguments.counters = counters.defined() ? counters.data_ptr<int>() : nullptr;
  std::vector<Tensor> pooled;
  for (const Network& network : networks) {
    const auto options = network.features.options().dtype(scalar_type_of<T>());
    pooled.push_back(
        at::empty({network.features.size(0), network.regions.base_cells(), network.features.size(1)}, options));
    arguments.networks[arguments.count++] = pooled_map<T>(network, pooled.back());
  }
  if (blocks_of(arguments) == 0 && counters.defined()) clear_counters(call, counters);
  check_launch(launch_pool(arguments, call.stream), "pool");
  return pooled;
}

template <typename T>
Projections project(const Call& call, const std::vector<Network>& networks, const std::vector<Tensor>& pooled) {
  ProductArguments<T> arguments = {};
  arguments.upstream = no_upstream();
  arguments.cells_per_image = 1;
  for (size_t i = 0; i < networks.size(); ++i) {
    const Tensor& cells = pooled[i];
    const Matrix left = {cells.data_ptr(), dtype_of(cells.scalar_type()), cells.size(2), 1};
    arguments.products[arguments.count++] = product_of<T>(
        left, matrix_of(networks[i].weight), cells.size(0) * cells.size(1), networks[i].weight.size(0), cells.size(2));
  }
  plan_products(arguments, {true, true}, call.processors);
  int64_t elements = 0;
  for (int i = 0; i < arguments.count; ++i) {
    elements += arguments.products[i].splits * arguments.products[i].rows * arguments.products[i].columns;
  }
  Projections projections = {{}, at::empty({elements}, pooled[0].options())};
  T* out = projections.memory.data_ptr<T>();
  for (int i = 0; i < arguments.count; ++i) {
    Product<T>& product = arguments.products[i];
    const int64_t classes = product.columns, size = product.rows * classes;
    const Optional& bias = networks[i].bias;
    const Regions& regions = networks[i].regions;
    product.out = out;
    projections.sources.push_back(
        {out, kDtype<T>, pooled[i].size(1) * classes, classes, 1, product.splits, size,
         bias.has_value() ? bias->data_ptr() : nullptr, bias.has_value() ? dtype_of(bias->scalar_type()) : Dtype::float32,
         bias.has_value() ? bias->stride(0) : 0, regions.folded ? regions.base[0] : 0});
    out += product.splits * size;
  }
  check_launch(launch_product(arguments, call.stream), "product");
  return projections;
}

template <typename T>
Tensor region_rows(const Call& call, const Network& network, const LogitSource& source) {
  const int64_t batch = network.features.size(0), classes = network.weight.size(0);
  const auto options = network.features.options().dtype(scalar_type_of<T>());
  Tensor logits = at::empty({batch, network.regions.cells(), classes}, options);
  const RowsArguments<T> arguments = {source, scales_of(network.regions.scales), batch, classes, logits.data_ptr<T>()};
  check_launch(launch_rows(arguments, call.stream), "rows");
  return logits;
}

namespace {

template <typename T>
GramArguments<T> gram_arguments(const GramInputs& inputs, const Upstream& upstream) {
  const GramOptions& options = inputs.options;
  GramArguments<T> arguments = {};
  arguments.sources[0] = inputs.student;
  arguments.sources[1] = inputs.teacher;
  arguments.scales = scales_of(options.scales);
  for (size_t s = 0; s < options.scales.size(); ++s) {
    const double cells = static_cast<double>(options.scales[s] * options.scales[s]);
    arguments.cell_weights[s] = options.scale_weights[s] / (options.gram == Gram::spatial ? 1.0 : cells);
  }
  arguments.form = options.gram == Gram::class_ ? Form::class_
      : options.gram == Gram::spatial           ? Form::spatial
                                                : Form::sample;
  arguments.normalize = options.normalize;
  arguments.temperature = static_cast<T>(options.temperature);
  arguments.per_image = options.reduction == Reduction::none;
  arguments.mean = options.reduction == Reduction::mean;
  arguments.upstream = upstream;
  arguments.batch = inputs.batch;
  arguments.classes = inputs.classes;
  return arguments;
}

// How many items of work each phase has.
template <typename T>
void plan_gram(GramArguments<T>& arguments, const Call& call, bool with_gradient) {
  const Scales& scales = arguments.scales;
  const int64_t batch = arguments.batch, rows = batch * scales.cells;
  const int32_t finest = *std::max_element(scales.sizes, scales.sizes + scales.count);
  const int64_t points = arguments.form == Form::sample ? batch : static_cast<int64_t>(finest) * finest;
  arguments.tile = points > 16 ? kLargePointTile<T> : 16;
  int64_t* items = arguments.items;
  items[0] = ceil_divide(2 * rows, kWarps);
  if (arguments.form == Form::class_) {
    items[1] = rows;
  } else if (arguments.form == Form::sample) {
    items[1] = scales.cells * ceil_divide(batch, arguments.tile);
  } else {
    for (int s = 0; s < scales.count; ++s) {
      items[1] += batch * ceil_divide(static_cast<int64_t>(scales.sizes[s]) * scales.sizes[s], arguments.tile);
    }
  }
  items[2] = arguments.form != Form::class_ && with_gradient ? items[1] : 0;
  items[3] = (arguments.folded == nullptr ? 0 : ceil_divide(batch * arguments.finest * arguments.finest, kWarps)) +
      (arguments.loss == nullptr ? 0 : 1);
  const int64_t total = items[0] + items[1] + items[2] + items[3];
  constexpr int64_t kBlocksPerProcessor = 8;  // as many as fit; further ones would only find the tickets gone
  TORCH_CHECK_VALUE(total < 0x7fffffff, "backend 'cuda' cannot number ", total, " items of work: too large a batch");
  arguments.blocks = std::min(total, kBlocksPerProcessor * call.processors);
  arguments.class_sum = class_sum();
  arguments.float64_cost = call.float64_cost;
}

// Memory of one launch, handed out in order.
template <typename T>
struct Workspace {
  int64_t elements = 0;
  std::vector<std::pair<T**, int64_t>> parts;

  void add(T*& pointer, int64_t count) {
    parts.emplace_back(&pointer, elements);
    elements += ceil_divide(count, 4) * 4;  // parts begin at 16 bytes
  }
  Tensor allocate(const at::TensorOptions& options) {
    Tensor memory = at::empty({elements}, options);
    for (const auto& [pointer, offset] : parts) *pointer = memory.data_ptr<T>() + offset;
    return memory;
  }
};

}  // namespace

template <typename T>
void gram(
    const Call& call, const GramInputs& inputs, const Upstream& upstream, const Tensor& counters, GramOutputs& outputs) {
  GramArguments<T> arguments = gram_arguments<T>(inputs, upstream);
  const int64_t rows = inputs.batch * arguments.scales.cells, classes = inputs.classes;
  const bool class_form = arguments.form == Form::class_;
  const bool folded = outputs.grad.defined() && outputs.finest != 0;
  if (folded) {
    arguments.folded = outputs.grad.data_ptr<T>();
    arguments.finest = outputs.finest;
  } else if (outputs.grad.defined()) {
    arguments.grad = outputs.grad.data_ptr<T>();
  }
  if (outputs.logits.defined()) arguments.raw = outputs.logits.data_ptr<T>();
  if (outputs.loss.defined()) arguments.loss = outputs.loss.data_ptr<T>();
  arguments.counters = counters.data_ptr<int>();
  plan_gram(arguments, call, outputs.grad.defined());
  Workspace<T> workspace;
  workspace.add(arguments.logits, 2 * rows * classes);
  workspace.add(arguments.statistics, rows);
  workspace.add(arguments.losses, rows);
  workspace.add(arguments.row_statistics, class_form ? 0 : 4 * rows);
  workspace.add(arguments.class_scratch, class_form ? arguments.blocks * classes * kClassScratch<T> : 0);
  if (folded) workspace.add(arguments.grad, rows * classes);
  const Tensor memory = workspace.allocate(counters.options().dtype(scalar_type_of<T>()));
  check_launch(launch_gram(arguments, call.stream), "gram");
}

template <typename T>
Tensor fold(const Call& call, const Tensor& grad_logits, const Regions& regions) {
  const Tensor by_region = grad_logits.transpose(1, 2);  // [B, N, K]
  if (!regions.folded && by_region.is_contiguous() && by_region.scalar_type() == scalar_type_of<T>()) return by_region;
  const int64_t batch = grad_logits.size(0), classes = grad_logits.size(1);
  Tensor out = at::empty({batch, regions.base_cells(), classes}, grad_logits.options().dtype(scalar_type_of<T>()));
  const FoldArguments<T> arguments = {
      source_of(grad_logits), scales_of(regions.scales), batch, classes, regions.folded ? regions.base[0] : 0,
      out.data_ptr<T>()};
  check_launch(launch_fold(arguments, call.stream), "fold");
  return out;
}

template <typename T>
Tensor scale(const Call& call, const Tensor& saved, const Upstream& upstream, at::ScalarType dtype) {
  Tensor out = at::empty(saved.sizes(), saved.options().dtype(dtype));
  const ScaleArguments<T> arguments = {
      saved.data_ptr<T>(), upstream, saved.size(0), saved.size(1) * saved.size(2), out.data_ptr(), dtype_of(dtype)};
  check_launch(launch_scale(arguments, call.stream), "scale");
  return out;
}

namespace {

template <typename T>
UnpoolArguments<T> unpool_arguments(const Tensor& grad, const Tensor& grad_pooled, const Regions& regions) {
  UnpoolArguments<T> arguments = {};
  if (grad.numel() == 0) return arguments;
  arguments.map = map_of(grad);
  arguments.access = access_of(arguments.map);
  arguments.scales = scales_of(regions.base);
  arguments.grad_pooled = grad_pooled.data_ptr<T>();
  const FeatureMap& map = arguments.map;
  const int64_t pixels = map.height * map.width;
  if (arguments.access == Access::planes) {
    arguments.channel_blocks = ceil_divide(map.channels, kUnpoolChannels);
    arguments.blocks = ceil_divide(map.batch * arguments.channel_blocks * pixels, kThreads);
  } else {
    arguments.channel_blocks = ceil_divide(map.channels, warp_channels(map, arguments.access));
    arguments.blocks = ceil_divide(map.batch * arguments.channel_blocks * pixels, kWarps);
  }
  return arguments;
}

// The parts of the weight's gradient, where it does not come out of the product in one part and its own dtype.
template <typename T>
Tensor add_weight_parts(
    const Product<T>& product, const Tensor& weights, const at::TensorOptions& options, UnpoolArguments<T>& arguments) {
  constexpr int64_t kMostBlocks = 1024;
  arguments.splits = product.splits;
  arguments.elements = weights.numel();
  Tensor parts = at::empty({product.splits, weights.numel()}, options);
  arguments.partial = parts.data_ptr<T>();
  arguments.out = weights.data_ptr();
  arguments.dtype = dtype_of(weights.scalar_type());
  arguments.partial_blocks = std::min(kMostBlocks, ceil_divide(weights.numel(), kThreads));
  return parts;
}

}  // namespace

template <typename T>
Tensor unpool(
    const Call& call, const Tensor& grad_pooled, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype,
    const Regions& regions) {
  Tensor features = at::empty_strided(size, stride, grad_pooled.options().dtype(dtype));
  check_launch(launch_unpool(unpool_arguments<T>(features, grad_pooled, regions), call.stream), "unpool");
  return features;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> network_backward(
    const Call& call, const NetworkGradient& gradient, const c10::List<bool>& wanted) {
  const Tensor& weight = gradient.weight;
  const auto options = gradient.grad_cells.options();
  const int64_t rows = gradient.grad_cells.size(0) * gradient.grad_cells.size(1);
  const int64_t classes = weight.size(0), channels = weight.size(1);
  Tensor features = wanted[0] ? at::empty_strided(gradient.size, gradient.stride, options.dtype(gradient.dtype))
                              : at::empty({0}, options.dtype(gradient.dtype));
  Tensor weights = wanted[1] ? at::empty({classes, channels}, weight.options()) : at::empty({0}, weight.options());
  Tensor bias = at::empty({wanted[2] ? classes : 0}, options.dtype(gradient.bias_dtype));
  Tensor grad_pooled = at::empty({wanted[0] ? rows * channels : 0}, options);

  const Matrix grad = {gradient.grad_cells.data_ptr(), kDtype<T>, classes, 1};
  ProductArguments<T> products = {};
  products.upstream = gradient.upstream;
  products.cells_per_image = gradient.grad_cells.size(1);
  if (wanted[0]) {
    Product<T>& product = products.products[products.count++];
    product = product_of<T>(grad, transposed(matrix_of(weight)), rows, channels, classes);
    product.upstream_by_row = true;
    product.out = grad_pooled.data_ptr<T>();
  }
  if (wanted[1]) {
    const Matrix pooled = {gradient.pooled.data_ptr(), dtype_of(gradient.pooled.scalar_type()), 1, channels};
    products.products[products.count++] = product_of<T>(transposed(grad), pooled, classes, channels, rows);
  }
  if (wanted[2]) {
    products.sums = {grad, rows, classes, bias.data_ptr(), dtype_of(gradient.bias_dtype), ceil_divide(classes, kWarp)};
  }
  plan_products(products, {!wanted[0], true}, call.processors);

  UnpoolArguments<T> unpool = unpool_arguments<T>(features, grad_pooled, gradient.regions);
  Tensor parts;
  if (wanted[1]) {
    Product<T>& product = products.products[products.count - 1];
    if (product.splits > 1 || weights.scalar_type() != scalar_type_of<T>()) {
      parts = add_weight_parts(product, weights, options, unpool);
    }
    product.out = parts.defined() ? parts.data_ptr<T>() : weights.data_ptr<T>();
  }
  check_launch(launch_product(products, call.stream), "product");
  check_launch(launch_unpool(unpool, call.stream), "unpool");
  return {features, weights, bias};
}

#define ICD_STAGES(T)                                                                                             \
  template std::vector<Tensor> pool<T>(const Call&, const std::vector<Network>&, const Tensor&);                  \
  template Projections project<T>(const Call&, const std::vector<Network>&, const std::vector<Tensor>&);          \
  template Tensor region_rows<T>(const Call&, const Network&, const LogitSource&);                                \
  template void gram<T>(const Call&, const GramInputs&, const Upstream&, const Tensor&, GramOutputs&);            \
  template Tensor fold<T>(const Call&, const Tensor&, const Regions&);                                            \
  template Tensor scale<T>(const Call&, const Tensor&, const Upstream&, at::ScalarType);                          \
  template Tensor unpool<T>(                                                                                      \
      const Call&, const Tensor&, at::IntArrayRef, at::IntArrayRef, at::ScalarType, const Regions&);              \
  template std::tuple<Tensor, Tensor, Tensor> network_backward<T>(                                                \
      const Call&, const NetworkGradient&, const c10::List<bool>&);

ICD_STAGES(float)
ICD_STAGES(double)

}  // namespace icd::cuda
