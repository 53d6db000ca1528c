// The normalisation of a local logit vector z of K classes as two numbers, from icd_kernels/options.py:
//   ẑ = u/r,  u = z - centre · mean(z),  r = max(spread · ‖u‖, floor), or 1 where spread is 0.
#pragma once

namespace icd {

struct Normalization {
  double centre;  // 0 or 1
  double spread;  // 1 for the norm, K^-1/2 for the standard deviation, 0 for neither

  bool is_identity() const { return centre == 0 && spread == 0; }
};

}  // namespace icd
