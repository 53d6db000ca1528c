// The options of an operator call, which Python has turned into numbers (icd_kernels/problem.py), and the regions of a
// map that they span. Host only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "class_sum.h"
#include "forms.h"
#include "normalize.h"
#include "tensor.h"

namespace icd {

// The private switch of tests and benchmarks: ICD_KERNELS_CLASS_SUM=exact|linear.
inline ClassSum class_sum() {
  const char* name = std::getenv("ICD_KERNELS_CLASS_SUM");
  if (name == nullptr) return ClassSum::automatic;
  return std::string_view(name) == "exact" ? ClassSum::exact
      : std::string_view(name) == "linear" ? ClassSum::linear
                                           : ClassSum::automatic;
}

inline int64_t cell_count(const std::vector<int64_t>& scales) {
  int64_t cells = 0;
  for (const int64_t scale : scales) cells += scale * scale;
  return cells;
}

inline const std::vector<int64_t>& checked_scales(const std::vector<int64_t>& scales) {
  check(!scales.empty(), "scales must hold at least one scale");
  for (const int64_t scale : scales) check(scale >= 1, "scales must be 1 or more, got ", scale);
  return scales;
}

// Where the regions lie, and which cells are pooled and projected: those of the grid of `finest` x `finest` alone where
// every region's logits are means over it ("folded"), or with `finest` 0 every cell of every scale.
struct Regions {
  std::vector<int64_t> scales;
  std::vector<int64_t> base;  // the scales that are pooled from the map
  bool folded;

  Regions(const std::vector<int64_t>& scale_list, int64_t finest)
      : scales(checked_scales(scale_list)),
        base(finest == 0 ? scales : std::vector<int64_t>{finest}),
        folded(finest != 0) {
    check(
        finest == 0 || finest == *std::max_element(scales.begin(), scales.end()),
        "finest must be 0 or the largest scale, got ", finest);
  }

  int64_t cells() const { return cell_count(scales); }
  int64_t base_cells() const { return cell_count(base); }
  int64_t finest() const { return folded ? base[0] : 0; }
};

struct GramOptions {
  std::vector<int64_t> scales;
  std::vector<double> cell_weights;  // what one Gram matrix of each scale weighs in its image's loss
  Gram gram;
  Normalization normalization;
  double temperature;
  Reduction reduction;

  GramOptions(
      const std::vector<int64_t>& scale_list, const std::vector<double>& weights, int64_t gram_number,
      const std::vector<double>& normalize, double tau, int64_t reduction_number)
      : scales(checked_scales(scale_list)),
        cell_weights(weights),
        gram(static_cast<Gram>(gram_number)),
        temperature(tau),
        reduction(static_cast<Reduction>(reduction_number)) {
    check(
        scales.size() == cell_weights.size(), "cell_weights must have one weight for each of the ", scales.size(),
        " scales, got ", cell_weights.size());
    check(0 <= gram_number && gram_number <= 2, "gram must be 0, 1 or 2, got ", gram_number);
    check(0 <= reduction_number && reduction_number <= 2, "reduction must be 0, 1 or 2, got ", reduction_number);
    check(normalize.size() == 2, "normalize must have 2 numbers, got ", normalize.size());
    check(std::isfinite(tau) && tau > 0, "temperature must be finite and above 0, got ", tau);
    normalization = {.centre = normalize[0], .spread = normalize[1]};
  }

  // Whether backward needs both networks' logits: every image's upstream gradient enters the other images' gradients.
  bool keeps_logits() const { return gram == Gram::sample && reduction == Reduction::none; }
};

}  // namespace icd
