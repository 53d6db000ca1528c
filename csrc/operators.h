// The operators, once for every device: check, choose the dtype of the math, run the device's stages in order.
//
// Stages (cpu/stages.h, cuda/stages.h) is a type with these members, T the dtype of the math:
//   Call            what a call on a tensor's device holds on to
//   Logits<T>       both networks' local logits, as `gram` takes them
//   pool<T>         maps (B, C, H, W) -> (B, base cells, C) of each
//   project<T>      those -> Logits<T>;   given<T>: logits (B, K, N) that are there already -> Logits<T>
//   region_rows<T>  the first network's logits (B, N, K) of every region
//   gram<T>         Logits<T> -> the reduced loss and what its backward needs
//   gram_backward<T>   dl/dz over base cells from the logits that were kept
//   fold<T>         (B, K, N) in any layout -> (B, base cells, K)
//   scale<T>        (B, cells, K) times the upstream gradient, in another dtype
//   unpool<T>       (B, cells, C) -> the gradient by the map
//   network_backward<T>   dl/dz over base cells -> the gradients by features, weight and bias
#pragma once

#include <tuple>

#include "common/arguments.h"

namespace icd {

// What `gram` gives: the loss, and dl/dz over the base cells or both networks' logits.
struct LossState {
  Tensor loss, saved;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // by features, weight and bias; empty where not wanted

// What the gradients by one network's tensors are computed from and laid out like.
struct NetworkGradient {
  const Tensor& grad_cells;  // [B, cells, K]
  const Tensor* upstream;    // [] or [B]; null counts as 1
  const Tensor& pooled;
  const Tensor& weight;
  const Layout& layout;
  const Regions& regions;
  const std::vector<bool>& wanted;
};

template <typename Stages>
struct Operators {
  using Call = typename Stages::Call;

  static Tensor region_features(const Tensor& features, const std::vector<int64_t>& scales) {
    const NoGrad no_grad;
    check_map(features);
    Call call(features);
    return dispatch_math(math_dtype({&features}), [&](auto t) {
      return Stages::template pool<decltype(t)>(call, {{features, features, {}, Regions(scales, 0)}})[0];
    });
  }

  static Tensor region_features_backward(
      const Tensor& grad, const std::vector<int64_t>& size, const std::vector<int64_t>& stride, ScalarType dtype,
      const std::vector<int64_t>& scales) {
    const NoGrad no_grad;
    const Regions regions(scales, 0);
    const Layout layout = {.size = size, .stride = stride, .dtype = dtype, .bias_dtype = dtype};
    check_cells(grad, layout, regions.cells());
    const Call call(grad);
    return dispatch_math(math_dtype({&grad}), [&](auto t) {
      return Stages::template unpool<decltype(t)>(call, torch::stable::contiguous(grad), layout, regions);
    });
  }

  static std::tuple<Tensor, Tensor> region_logits(
      const Tensor& features, const Tensor& weight, const Optional& bias, const std::vector<int64_t>& scales,
      int64_t finest, bool save_pooled) {
    const NoGrad no_grad;
    const std::vector<Network> networks = {{features, weight, bias, Regions(scales, finest)}};
    check_network(networks[0]);
    check_devices({&features, &weight, pointer(bias)});
    Call call(features);
    return dispatch_math(math_dtype({&features, &weight, pointer(bias)}), [&](auto t) {
      using T = decltype(t);
      const std::vector<Tensor> pooled = Stages::template pool<T>(call, networks);
      const auto logits = Stages::template project<T>(call, networks, pooled);
      return std::tuple<Tensor, Tensor>(
          swapped(Stages::template region_rows<T>(call, networks[0], logits)), saved_if(save_pooled, pooled[0]));
    });
  }

  static Gradients region_logits_backward(
      const Tensor& grad_logits, const Tensor& pooled, const Tensor& weight, const std::vector<int64_t>& size,
      const std::vector<int64_t>& stride, ScalarType dtype, ScalarType bias_dtype, const std::vector<int64_t>& scales,
      int64_t finest, const std::vector<bool>& wanted) {
    const NoGrad no_grad;
    const Layout layout = {.size = size, .stride = stride, .dtype = dtype, .bias_dtype = bias_dtype};
    check_layout(layout);
    check_wanted(wanted);
    check_devices({&grad_logits, &pooled, &weight});
    const Call call(grad_logits);
    const Regions regions(scales, finest);
    return dispatch_math(math_dtype({&grad_logits}), [&](auto t) {
      using T = decltype(t);
      const Tensor grad_cells = Stages::template fold<T>(call, grad_logits, regions);
      return Stages::template network_backward<T>(
          call, {grad_cells, nullptr, pooled, weight, layout, regions, wanted});
    });
  }

  static std::tuple<Tensor, Tensor> gram_kl(
      const Tensor& student, const Tensor& teacher, const std::vector<int64_t>& scales,
      const std::vector<double>& cell_weights, int64_t gram, const std::vector<double>& normalize, double temperature,
      int64_t reduction, bool save_gradient) {
    const NoGrad no_grad;
    const GramOptions options(scales, cell_weights, gram, normalize, temperature, reduction);
    const Regions regions(scales, 0);
    check_logits(student, teacher, regions.cells());
    check_devices({&student, &teacher});
    Call call(student);
    return dispatch_math(math_dtype({&student, &teacher}), [&](auto t) {
      using T = decltype(t);
      const auto logits = Stages::template given<T>(call, student, teacher);
      const LossState state = Stages::template gram<T>(call, logits, options, regions, save_gradient);
      return std::tuple<Tensor, Tensor>(state.loss, state.saved);
    });
  }

  static Tensor gram_kl_backward(
      const Tensor& grad_loss, const Tensor& saved, ScalarType dtype, const std::vector<int64_t>& scales,
      const std::vector<double>& cell_weights, int64_t gram, const std::vector<double>& normalize, double temperature,
      int64_t reduction) {
    const NoGrad no_grad;
    const GramOptions options(scales, cell_weights, gram, normalize, temperature, reduction);
    check_devices({&grad_loss, &saved});
    Call call(saved);
    return dispatch_math(math_dtype({&saved}), [&](auto t) {
      using T = decltype(t);
      if (!options.keeps_logits()) return swapped(Stages::template scale<T>(call, saved, grad_loss, dtype));
      const Regions regions(scales, 0);
      return swapped(
          to_dtype(Stages::template gram_backward<T>(call, saved, grad_loss, options, regions), dtype));
    });
  }

  static std::tuple<Tensor, Tensor, Tensor> icd_loss(
      const Tensor& student_features, const Tensor& student_weight, const Optional& student_bias,
      const Tensor& teacher_features, const Tensor& teacher_weight, const Optional& teacher_bias,
      const std::vector<int64_t>& scales, const std::vector<double>& cell_weights, int64_t gram,
      const std::vector<double>& normalize, double temperature, int64_t reduction, int64_t student_finest,
      int64_t teacher_finest, bool save_gradient, bool save_pooled) {
    const NoGrad no_grad;
    const GramOptions options(scales, cell_weights, gram, normalize, temperature, reduction);
    const std::vector<Network> networks = {
        {student_features, student_weight, student_bias, Regions(scales, student_finest)},
        {teacher_features, teacher_weight, teacher_bias, Regions(scales, teacher_finest)}};
    check_networks(networks[0], networks[1]);
    const std::initializer_list<const Tensor*> tensors = {
        &student_features, &student_weight, pointer(student_bias),
        &teacher_features, &teacher_weight, pointer(teacher_bias)};
    check_devices(tensors);
    Call call(student_features);
    return dispatch_math(math_dtype(tensors), [&](auto t) {
      using T = decltype(t);
      const std::vector<Tensor> pooled = Stages::template pool<T>(call, networks);
      const auto logits = Stages::template project<T>(call, networks, pooled);
      const LossState state = Stages::template gram<T>(call, logits, options, networks[0].regions, save_gradient);
      return std::tuple<Tensor, Tensor, Tensor>(state.loss, state.saved, saved_if(save_pooled, pooled[0]));
    });
  }

  static Gradients icd_loss_backward(
      const Tensor& grad_loss, const Tensor& saved, const Tensor& pooled, const Tensor& weight,
      const std::vector<int64_t>& size, const std::vector<int64_t>& stride, ScalarType dtype, ScalarType bias_dtype,
      const std::vector<int64_t>& scales, const std::vector<double>& cell_weights, int64_t gram,
      const std::vector<double>& normalize, double temperature, int64_t reduction, int64_t finest,
      const std::vector<bool>& wanted) {
    const NoGrad no_grad;
    const GramOptions options(scales, cell_weights, gram, normalize, temperature, reduction);
    const Layout layout = {.size = size, .stride = stride, .dtype = dtype, .bias_dtype = bias_dtype};
    check_layout(layout);
    check_wanted(wanted);
    check_devices({&grad_loss, &saved, &pooled, &weight});
    Call call(saved);
    const Regions regions(scales, finest);
    return dispatch_math(math_dtype({&saved}), [&](auto t) {
      using T = decltype(t);
      if (!options.keeps_logits()) {
        return Stages::template network_backward<T>(
            call, {saved, &grad_loss, pooled, weight, layout, regions, wanted});
      }
      const Tensor grad_cells = Stages::template gram_backward<T>(call, saved, grad_loss, options, regions);
      return Stages::template network_backward<T>(
          call, {grad_cells, nullptr, pooled, weight, layout, regions, wanted});
    });
  }

  static void add_to(torch::stable::detail::StableLibrary& library) {
    library.impl("region_features", TORCH_BOX(&Operators::region_features));
    library.impl("region_features_backward", TORCH_BOX(&Operators::region_features_backward));
    library.impl("region_logits", TORCH_BOX(&Operators::region_logits));
    library.impl("region_logits_backward", TORCH_BOX(&Operators::region_logits_backward));
    library.impl("gram_kl", TORCH_BOX(&Operators::gram_kl));
    library.impl("gram_kl_backward", TORCH_BOX(&Operators::gram_kl_backward));
    library.impl("icd_loss", TORCH_BOX(&Operators::icd_loss));
    library.impl("icd_loss_backward", TORCH_BOX(&Operators::icd_loss_backward));
  }

 private:
  static Tensor saved_if(bool wanted, const Tensor& tensor) {
    return wanted ? tensor : empty({0}, tensor.scalar_type(), tensor);
  }
};

}  // namespace icd
