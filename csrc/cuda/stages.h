// One function for each launch: allocate, fill in the kernel's arguments, launch. T is the dtype of the math.
#pragma once

#include <c10/core/DeviceGuard.h>

#include "describe.h"
#include "device.h"

namespace icd::cuda {

// The device of a call, current until the call ends, and the stream its launches go to.
struct Call {
  c10::DeviceGuard guard;
  Stream stream;
  int64_t processors;
  double float64_cost;

  explicit Call(const Tensor& on)
      : guard(on.device()),
        stream(current_stream(on.device().index())),
        processors(multiprocessors(on.device().index())),
        float64_cost(icd::cuda::float64_cost(on.device().index())) {}
};

// One network's side of the loss.
struct Network {
  const Tensor& features;
  const Tensor& weight;
  const Optional& bias;
  const Regions& regions;
};

struct GramInputs {
  LogitSource student, teacher;
  int64_t batch, classes;
  const GramOptions& options;
};

// What `gram` writes; a tensor that is not defined is not wanted.
struct GramOutputs {
  Tensor loss;
  Tensor grad;   // [B, cells, K] by the raw student logits
  Tensor logits;  // [2, B, N, K], raw
  int64_t finest;  // the grid that `grad` is folded onto, or 0: all regions
};

// Counters for a launch of `gram`; zeros are written by `pool` or by `clear_counters`.
Tensor new_counters(const Tensor& like);
void clear_counters(const Call& call, const Tensor& counters);

// (B, C, H, W) of each network -> (B, cells, C)
template <typename T>
std::vector<Tensor> pool(const Call& call, const std::vector<Network>& networks, const Tensor& counters);

// Products of pooled features and weights. The sources' data are views of the tensor `memory`.
struct Projections {
  std::vector<LogitSource> sources;
  Tensor memory;
};

template <typename T>
Projections project(const Call& call, const std::vector<Network>& networks, const std::vector<Tensor>& pooled);

// (B, N, K) logits of every region
template <typename T>
Tensor region_rows(const Call& call, const Network& network, const LogitSource& source);

template <typename T>
void gram(
    const Call& call, const GramInputs& inputs, const Upstream& upstream, const Tensor& counters, GramOutputs& outputs);

// (B, K, N) in any layout -> (B, cells, K)
template <typename T>
Tensor fold(const Call& call, const Tensor& grad_logits, const Regions& regions);

// (B, N, K) · upstream in `dtype`
template <typename T>
Tensor scale(const Call& call, const Tensor& saved, const Upstream& upstream, at::ScalarType dtype);

// (B, cells, C) -> the gradient by the features, in their layout and dtype.
template <typename T>
Tensor unpool(
    const Call& call, const Tensor& grad_pooled, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype,
    const Regions& regions);

// What the gradients by one network's tensors are computed from and laid out like.
struct NetworkGradient {
  const Tensor& grad_cells;  // [B, cells, K]
  const Upstream& upstream;
  const Tensor& pooled;
  const Tensor& weight;
  at::IntArrayRef size, stride;
  at::ScalarType dtype, bias_dtype;
  const Regions& regions;
};

// The gradients by features, weight and bias; those not wanted are empty.
template <typename T>
std::tuple<Tensor, Tensor, Tensor> network_backward(
    const Call& call, const NetworkGradient& gradient, const c10::List<bool>& wanted);

}  // namespace icd::cuda
