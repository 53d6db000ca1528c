// From local logits to the loss and its gradient by them: normalisation, Gram matrices, reduction.
#pragma once

#include "../common/arguments.h"

namespace icd::cpu {

struct ForwardState {
  Tensor loss, saved;
};

// The reduced loss of logits (B, N, K), which are overwritten, and what its backward needs: dl/dz over all regions.
ForwardState gram_forward(const Tensor& student, const Tensor& teacher, const GramOptions& options, bool save);

// dl/dz over the cells that `saved` covers, times the upstream gradient.
Tensor gram_backward(const Tensor& grad_loss, const Tensor& saved, const GramOptions& options);

}  // namespace icd::cpu
