// Between maps, pooled cells and local logits, and back. Matrix products go through ATen to the library PyTorch links.
#pragma once

#include <tuple>

#include "../common/arguments.h"

namespace icd::cpu {

// (B, C, H, W) -> (B, cells, C), in the dtype of the math.
Tensor pool(const Tensor& features, const Regions& regions, at::ScalarType dtype);

// (B, cells, C) -> the gradient by the features, in their layout and dtype.
Tensor unpool(
    const Tensor& grad_pooled, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype,
    const Regions& regions);

// Local logits (B, N, K) from pooled features (B, cells, C).
Tensor project(const Tensor& pooled, const Tensor& weight, const Optional& bias, const Regions& regions);

// (B, N, K) over all regions -> (B, cells, K) over the pooled ones: itself where the regions are not folded.
Tensor fold(const Tensor& grad, const Regions& regions);

// The wanted gradients by features, weight and bias from dl/dz over the pooled cells (B, cells, K); the others are empty.
std::tuple<Tensor, Tensor, Tensor> network_backward(
    const Tensor& grad_cells, const Tensor& pooled, const Tensor& weight, at::IntArrayRef size, at::IntArrayRef stride,
    at::ScalarType dtype, at::ScalarType bias_dtype, const Regions& regions, const c10::List<bool>& wanted);

}  // namespace icd::cpu
