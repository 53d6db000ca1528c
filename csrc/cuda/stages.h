// The stages of the operators on CUDA tensors (../operators.h says what each is given and gives): one function for each
// launch, which allocates, fills in the kernel's arguments and launches.
#pragma once

#include "../operators.h"
#include "describe.h"
#include "device.h"

namespace icd::cuda {

struct Stages {
  // The device of a call, current until the call ends, and the stream its launches go to.
  struct Call {
    DeviceGuard guard;
    Stream stream;
    int64_t processors;
    double float64_cost;
    Optional counters;  // of a launch of `gram`: `pool` or `given` allocates them and writes zeros

    explicit Call(const Tensor& on);
  };

  // Where both networks' logits lie: views of `memory`, or a caller's tensors.
  template <typename T>
  struct Logits {
    std::vector<LogitSource> sources;
    int64_t batch, classes;
    Tensor memory;
  };

  template <typename T>
  static std::vector<Tensor> pool(Call& call, const std::vector<Network>& networks);

  template <typename T>
  static Logits<T> project(
      const Call& call, const std::vector<Network>& networks, const std::vector<Tensor>& pooled);

  template <typename T>
  static Logits<T> given(Call& call, const Tensor& student, const Tensor& teacher);

  template <typename T>
  static Tensor region_rows(const Call& call, const Network& network, const Logits<T>& logits);

  template <typename T>
  static LossState gram(
      const Call& call, const Logits<T>& logits, const GramOptions& options, const Regions& regions, bool save);

  template <typename T>
  static Tensor gram_backward(
      Call& call, const Tensor& saved, const Tensor& upstream, const GramOptions& options,
      const Regions& regions);

  template <typename T>
  static Tensor fold(const Call& call, const Tensor& grad_logits, const Regions& regions);

  template <typename T>
  static Tensor scale(const Call& call, const Tensor& saved, const Tensor& upstream, ScalarType dtype);

  template <typename T>
  static Tensor unpool(const Call& call, const Tensor& grad_pooled, const Layout& layout, const Regions& regions);

  template <typename T>
  static Gradients network_backward(const Call& call, const NetworkGradient& gradient);
};

}  // namespace icd::cuda
