// The stages of the operators on CPU tensors (../operators.h says what each is given and gives).
#pragma once

#include "../operators.h"

namespace icd::cpu {

struct Stages {
  struct Call {
    explicit Call(const Tensor&) {}
  };

  // (B, N, K) of every region, ours to overwrite; `teacher` is not defined where one network is asked for.
  template <typename T>
  struct Logits {
    Tensor student;
    Optional teacher;
  };

  template <typename T>
  static std::vector<Tensor> pool(Call& call, const std::vector<Network>& networks);

  template <typename T>
  static Logits<T> project(
      const Call& call, const std::vector<Network>& networks, const std::vector<Tensor>& pooled);

  template <typename T>
  static Logits<T> given(Call& call, const Tensor& student, const Tensor& teacher);

  template <typename T>
  static Tensor region_rows(const Call&, const Network&, const Logits<T>& logits) {
    return logits.student;
  }

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

}  // namespace icd::cpu
