#include "stages.h"

#include <algorithm>

#include "plan.h"

namespace icd::cuda {
namespace {

template <typename T>
PooledMap<T> pooled_map(const Network& network, const Tensor& pooled) {
  PooledMap<T> net = {
      .map = map_of(network.features),
      .access = Access::planes,
      .scales = scales_of(network.regions.base),
      .pooled = data_of<T>(pooled),
      .planes = 1,
      .channel_blocks = 1,
      .blocks = 0};
  plan_pool(net);
  return net;
}

template <typename T>
Product<T> product_of(Matrix left, Matrix right, int64_t rows, int64_t columns, int64_t depth) {
  return {
      .left = left,
      .right = right,
      .rows = rows,
      .columns = columns,
      .depth = depth,
      .splits = 1,
      .split_depth = depth,
      .row_tiles = 0,
      .column_tiles = 0,
      .out = nullptr,
      .upstream_by_row = false};
}

void clear_counters(const Stages::Call& call) {
  clear(call.counters->data_ptr(), kCounters * sizeof(int), call.stream);
}

}  // namespace

Stages::Call::Call(const Tensor& on)
    : guard(on.get_device_index()),
      stream(current_stream(on.get_device_index())),
      processors(multiprocessors(on.get_device_index())),
      float64_cost(icd::cuda::float64_cost(on.get_device_index())) {}

template <typename T>
std::vector<Tensor> Stages::pool(Call& call, const std::vector<Network>& networks) {
  call.counters = empty({kCounters}, ScalarType::Int, networks[0].features);
  PoolArguments<T> arguments = {};
  arguments.counters = data_of<int>(*call.counters);
  std::vector<Tensor> pooled;
  for (const Network& network : networks) {
    const Tensor& features = network.features;
    pooled.push_back(
        empty({features.size(0), network.regions.base_cells(), features.size(1)}, scalar_type_of<T>(), features));
    arguments.networks[arguments.count++] = pooled_map<T>(network, pooled.back());
  }
  if (blocks_of(arguments) == 0) clear_counters(call);
  check_launch(launch_pool(arguments, call.stream), "pool");
  return pooled;
}

template <typename T>
Stages::Logits<T> Stages::project(
    const Call& call, const std::vector<Network>& networks, const std::vector<Tensor>& pooled) {
  ProductArguments<T> arguments = {};
  arguments.upstream = upstream_of_loss(nullptr);
  arguments.cells_per_image = 1;
  for (size_t i = 0; i < networks.size(); ++i) {
    const Tensor &cells = pooled[i], &weight = networks[i].weight;
    const Matrix left = {.data = cells.data_ptr(), .dtype = kDtype<T>, .row_stride = cells.size(2), .column_stride = 1};
    arguments.products[arguments.count++] =
        product_of<T>(left, matrix_of(weight), cells.size(0) * cells.size(1), weight.size(0), cells.size(2));
  }
  plan_products(arguments, {true, true}, call.processors);
  int64_t elements = 0;
  for (int i = 0; i < arguments.count; ++i) {
    elements += arguments.products[i].splits * arguments.products[i].rows * arguments.products[i].columns;
  }
  Logits<T> logits = {
      .sources = {},
      .batch = pooled[0].size(0),
      .classes = networks[0].weight.size(0),
      .memory = empty({elements}, scalar_type_of<T>(), pooled[0])};
  T* out = data_of<T>(logits.memory);
  for (int i = 0; i < arguments.count; ++i) {
    Product<T>& product = arguments.products[i];
    const int64_t classes = product.columns, size = product.rows * classes;
    const Optional& bias = networks[i].bias;
    product.out = out;
    logits.sources.push_back(
        {.data = out,
         .dtype = kDtype<T>,
         .image_stride = pooled[i].size(1) * classes,
         .cell_stride = classes,
         .class_stride = 1,
         .splits = product.splits,
         .split_stride = size,
         .bias = bias.has_value() ? bias->data_ptr() : nullptr,
         .bias_dtype = bias.has_value() ? dtype_of(bias->scalar_type()) : Dtype::float32,
         .bias_stride = bias.has_value() ? bias->stride(0) : 0,
         .finest = networks[i].regions.finest()});
    out += product.splits * size;
  }
  check_launch(launch_product(arguments, call.stream), "product");
  return logits;
}

template <typename T>
Stages::Logits<T> Stages::given(Call& call, const Tensor& student, const Tensor& teacher) {
  call.counters = empty({kCounters}, ScalarType::Int, student);
  clear_counters(call);
  return {
      .sources = {source_of(student), source_of(teacher)},
      .batch = student.size(0),
      .classes = student.size(1),
      .memory = student};
}

template <typename T>
Tensor Stages::region_rows(const Call& call, const Network& network, const Logits<T>& logits) {
  const LogitSource& source = logits.sources[0];
  const Regions& regions = network.regions;
  const int64_t batch = logits.batch, cells = regions.cells(), classes = logits.classes;
  if (!regions.folded && source.splits == 1 && source.bias == nullptr) {
    return view(logits.memory, {batch, cells, classes}, {cells * classes, classes, 1});
  }
  const Tensor rows = empty({batch, cells, classes}, scalar_type_of<T>(), network.features);
  const RowsArguments<T> arguments = {
      .source = source,
      .scales = scales_of(regions.scales),
      .batch = batch,
      .classes = classes,
      .out = data_of<T>(rows)};
  check_launch(launch_rows(arguments, call.stream), "rows");
  return rows;
}

namespace {

// What a launch of `gram` writes; a tensor that is not there is not wanted.
struct GramOutputs {
  Optional loss;
  Optional grad;   // [B, base cells, K] by the raw student logits
  Optional logits;  // [2, B, N, K], raw
};

template <typename T>
GramArguments<T> gram_arguments(
    const Stages::Logits<T>& logits, const GramOptions& options, const Upstream& upstream, double float64_cost) {
  GramArguments<T> arguments = {};
  arguments.sources[0] = logits.sources[0];
  arguments.sources[1] = logits.sources[1];
  arguments.scales = scales_of(options.scales);
  std::copy(options.cell_weights.begin(), options.cell_weights.end(), arguments.cell_weights);
  arguments.gram = options.gram;
  arguments.normalization = options.normalization;
  arguments.temperature = static_cast<T>(options.temperature);
  arguments.per_image = options.reduction == Reduction::none;
  arguments.mean = options.reduction == Reduction::mean;
  arguments.upstream = upstream;
  arguments.batch = logits.batch;
  arguments.classes = logits.classes;
  arguments.class_sum = class_sum();
  arguments.float64_cost = float64_cost;
  return arguments;
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
  Tensor allocate(const Tensor& like) {
    const Tensor memory = empty({elements}, scalar_type_of<T>(), like);
    for (const auto& [pointer, offset] : parts) *pointer = data_of<T>(memory) + offset;
    return memory;
  }
};

template <typename T>
void run_gram(
    const Stages::Call& call, const Stages::Logits<T>& logits, const GramOptions& options, const Regions& regions,
    const Upstream& upstream, const GramOutputs& outputs) {
  GramArguments<T> arguments = gram_arguments<T>(logits, options, upstream, call.float64_cost);
  const int64_t rows = logits.batch * arguments.scales.cells, classes = logits.classes;
  const bool class_form = arguments.gram == Gram::class_;
  const bool folded = outputs.grad.has_value() && regions.folded;
  if (folded) {
    arguments.folded = data_of<T>(*outputs.grad);
    arguments.finest = regions.finest();
  } else if (outputs.grad.has_value()) {
    arguments.grad = data_of<T>(*outputs.grad);
  }
  if (outputs.logits.has_value()) arguments.raw = data_of<T>(*outputs.logits);
  if (outputs.loss.has_value()) arguments.loss = data_of<T>(*outputs.loss);
  arguments.counters = data_of<int>(*call.counters);
  plan_gram(arguments, outputs.grad.has_value(), call.processors);
  Workspace<T> workspace;
  workspace.add(arguments.logits, 2 * rows * classes);
  workspace.add(arguments.statistics, rows);
  workspace.add(arguments.losses, rows);
  workspace.add(arguments.row_statistics, class_form ? 0 : 4 * rows);
  workspace.add(arguments.class_scratch, class_form ? arguments.blocks * classes * kClassScratch<T> : 0);
  if (folded) workspace.add(arguments.grad, rows * classes);
  const Tensor memory = workspace.allocate(logits.memory);
  check_launch(launch_gram(arguments, call.stream), "gram");
}

}  // namespace

template <typename T>
LossState Stages::gram(
    const Call& call, const Logits<T>& logits, const GramOptions& options, const Regions& regions, bool save) {
  const ScalarType dtype = scalar_type_of<T>();
  const Tensor& like = logits.memory;
  const int64_t batch = logits.batch, classes = logits.classes;
  GramOutputs outputs = {
      .loss = options.reduction == Reduction::none ? empty({batch}, dtype, like) : empty({}, dtype, like),
      .grad = {},
      .logits = {}};
  if (save && options.keeps_logits()) {
    outputs.logits = empty({2, batch, regions.cells(), classes}, dtype, like);
  } else if (save) {
    outputs.grad = empty({batch, regions.base_cells(), classes}, dtype, like);
  }
  run_gram<T>(call, logits, options, regions, upstream_of_loss(nullptr), outputs);
  const Optional& saved = outputs.logits.has_value() ? outputs.logits : outputs.grad;
  return {.loss = *outputs.loss, .saved = saved.has_value() ? *saved : empty({0}, dtype, like)};
}

template <typename T>
Tensor Stages::gram_backward(
    Call& call, const Tensor& saved, const Tensor& upstream, const GramOptions& options,
    const Regions& regions) {
  const int64_t batch = saved.size(1), cells = saved.size(2), classes = saved.size(3);
  const auto network = [&](int64_t number) {  // (B, K, N)
    return view(saved, {batch, classes, cells}, {cells * classes, 1, classes}, number * batch * cells * classes);
  };
  const Tensor student = network(0), teacher = network(1);
  const Tensor grad = empty({batch, regions.base_cells(), classes}, saved.scalar_type(), saved);
  const GramOutputs outputs = {.loss = {}, .grad = grad, .logits = {}};
  run_gram<T>(call, given<T>(call, student, teacher), options, regions, upstream_of_loss(&upstream), outputs);
  return grad;
}

template <typename T>
Tensor Stages::fold(const Call& call, const Tensor& grad_logits, const Regions& regions) {
  const Tensor by_region = swapped(grad_logits);  // [B, N, K]
  if (!regions.folded && by_region.is_contiguous() && by_region.scalar_type() == scalar_type_of<T>()) return by_region;
  const int64_t batch = grad_logits.size(0), classes = grad_logits.size(1);
  const Tensor out = empty({batch, regions.base_cells(), classes}, scalar_type_of<T>(), grad_logits);
  const FoldArguments<T> arguments = {
      .grad = source_of(grad_logits),
      .scales = scales_of(regions.scales),
      .batch = batch,
      .classes = classes,
      .finest = regions.finest(),
      .out = data_of<T>(out)};
  check_launch(launch_fold(arguments, call.stream), "fold");
  return out;
}

template <typename T>
Tensor Stages::scale(const Call& call, const Tensor& saved, const Tensor& upstream, ScalarType dtype) {
  const Tensor out = empty(saved.sizes(), dtype, saved);
  const ScaleArguments<T> arguments = {
      .saved = data_of<T>(saved),
      .upstream = upstream_of_loss(&upstream),
      .batch = saved.size(0),
      .elements = saved.size(1) * saved.size(2),
      .out = out.data_ptr(),
      .dtype = dtype_of(dtype)};
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
  arguments.grad_pooled = data_of<T>(grad_pooled);
  plan_unpool(arguments);
  return arguments;
}

// The parts of the weight's gradient, where it does not come out of the product in one part and its own dtype.
template <typename T>
Tensor add_weight_parts(const Product<T>& product, const Tensor& weights, UnpoolArguments<T>& arguments) {
  constexpr int64_t kMostBlocks = 1024;
  const Tensor parts = empty({product.splits, weights.numel()}, scalar_type_of<T>(), weights);
  arguments.splits = product.splits;
  arguments.elements = weights.numel();
  arguments.partial = data_of<T>(parts);
  arguments.out = weights.data_ptr();
  arguments.dtype = dtype_of(weights.scalar_type());
  arguments.partial_blocks = std::min(kMostBlocks, ceil_divide(weights.numel(), kThreads));
  return parts;
}

}  // namespace

template <typename T>
Tensor Stages::unpool(const Call& call, const Tensor& grad_pooled, const Layout& layout, const Regions& regions) {
  const Tensor features = empty_strided(layout.size, layout.stride, layout.dtype, grad_pooled);
  check_launch(launch_unpool(unpool_arguments<T>(features, grad_pooled, regions), call.stream), "unpool");
  return features;
}

template <typename T>
Gradients Stages::network_backward(const Call& call, const NetworkGradient& gradient) {
  const auto& [grad_cells, upstream, pooled, weight, layout, regions, wanted] = gradient;
  const int64_t rows = grad_cells.size(0) * grad_cells.size(1);
  const int64_t classes = weight.size(0), channels = weight.size(1);
  const Tensor features = wanted[0] ? empty_strided(layout.size, layout.stride, layout.dtype, grad_cells)
                                    : empty({0}, layout.dtype, grad_cells);
  const Tensor weights = wanted[1] ? empty({classes, channels}, weight.scalar_type(), weight)
                                   : empty({0}, weight.scalar_type(), weight);
  const Tensor bias = empty({wanted[2] ? classes : 0}, layout.bias_dtype, grad_cells);
  const Tensor grad_pooled = empty({wanted[0] ? rows * channels : 0}, scalar_type_of<T>(), grad_cells);

  const Matrix grad = {
      .data = grad_cells.data_ptr(), .dtype = kDtype<T>, .row_stride = classes, .column_stride = 1};
  ProductArguments<T> products = {};
  products.upstream = upstream_of_loss(upstream);
  products.cells_per_image = grad_cells.size(1);
  if (wanted[0]) {
    Product<T>& product = products.products[products.count++];
    product = product_of<T>(grad, transposed(matrix_of(weight)), rows, channels, classes);
    product.upstream_by_row = true;
    product.out = data_of<T>(grad_pooled);
  }
  if (wanted[1]) {
    const Matrix columns = {
        .data = pooled.data_ptr(), .dtype = kDtype<T>, .row_stride = 1, .column_stride = channels};
    products.products[products.count++] = product_of<T>(transposed(grad), columns, classes, channels, rows);
  }
  if (wanted[2]) {
    products.sums = {
        .matrix = grad,
        .rows = rows,
        .columns = classes,
        .out = bias.data_ptr(),
        .dtype = dtype_of(layout.bias_dtype),
        .blocks = ceil_divide(classes, kWarp)};
  }
  plan_products(products, {!wanted[0], true}, call.processors);

  UnpoolArguments<T> unpool = unpool_arguments<T>(features, grad_pooled, regions);
  Optional parts;
  if (wanted[1]) {
    Product<T>& product = products.products[products.count - 1];
    if (product.splits > 1 || weights.scalar_type() != scalar_type_of<T>()) {
      parts = add_weight_parts(product, weights, unpool);
    }
    product.out = data_of<T>(parts.has_value() ? *parts : weights);
  }
  check_launch(launch_product(products, call.stream), "product");
  check_launch(launch_unpool(unpool, call.stream), "unpool");
  return {features, weights, bias};
}

#define ICD_STAGES(T)                                                                                              \
  template std::vector<Tensor> Stages::pool<T>(Call&, const std::vector<Network>&);                                \
  template Stages::Logits<T> Stages::project<T>(                                                                   \
      const Call&, const std::vector<Network>&, const std::vector<Tensor>&);                                       \
  template Stages::Logits<T> Stages::given<T>(Call&, const Tensor&, const Tensor&);                                \
  template Tensor Stages::region_rows<T>(const Call&, const Network&, const Logits<T>&);                           \
  template LossState Stages::gram<T>(                                                                              \
      const Call&, const Logits<T>&, const GramOptions&, const Regions&, bool);                                    \
  template Tensor Stages::gram_backward<T>(                                                                        \
      Call&, const Tensor&, const Tensor&, const GramOptions&, const Regions&);                                    \
  template Tensor Stages::fold<T>(const Call&, const Tensor&, const Regions&);                                     \
  template Tensor Stages::scale<T>(const Call&, const Tensor&, const Tensor&, ScalarType);                         \
  template Tensor Stages::unpool<T>(const Call&, const Tensor&, const Layout&, const Regions&);                    \
  template Gradients Stages::network_backward<T>(const Call&, const NetworkGradient&);

ICD_STAGES(float)
ICD_STAGES(double)

}  // namespace icd::cuda
