// The options of an operator call, parsed and checked, and the regions they span on a map. Host only.
#pragma once

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "class_sum.h"
#include "normalize.h"

namespace icd {

enum class Gram { class_, spatial, sample };
enum class Pyramid { adaptive, nested };
enum class Reduction { mean, sum, none };

inline Gram parse_gram(std::string_view name) {
  if (name == "class") return Gram::class_;
  if (name == "spatial") return Gram::spatial;
  TORCH_CHECK_VALUE(name == "sample", "gram must be 'class', 'spatial' or 'sample', got '", name, "'");
  return Gram::sample;
}

inline Pyramid parse_pyramid(std::string_view name) {
  TORCH_CHECK_VALUE(
      name == "adaptive" || name == "nested", "pyramid must be 'adaptive' or 'nested', got '", name, "'");
  return name == "adaptive" ? Pyramid::adaptive : Pyramid::nested;
}

inline Normalize parse_normalize(std::string_view name) {
  if (name == "none") return Normalize::none;
  if (name == "l2") return Normalize::l2;
  TORCH_CHECK_VALUE(name == "zscore", "normalize must be 'none', 'l2' or 'zscore', got '", name, "'");
  return Normalize::zscore;
}

inline Reduction parse_reduction(std::string_view name) {
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  TORCH_CHECK_VALUE(name == "none", "reduction must be 'mean', 'sum' or 'none', got '", name, "'");
  return Reduction::none;
}

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

// Where the regions lie, and which cells are pooled and projected. Pooling and projection are linear, so where every
// coarse cell is a union of equally large cells of the finest scale, its logits are the mean of theirs: only the finest
// grid is projected ("folded").
struct Regions {
  std::vector<int64_t> scales;
  std::vector<int64_t> base;  // the scales that are pooled from the map
  bool folded;

  Regions(at::IntArrayRef scale_list, Pyramid pyramid, int64_t height, int64_t width) : scales(checked(scale_list)) {
    const int64_t finest = *std::max_element(scales.begin(), scales.end());
    const bool unions = height % finest == 0 && width % finest == 0 &&
        std::all_of(scales.begin(), scales.end(), [&](int64_t scale) { return finest % scale == 0; });
    folded = pyramid == Pyramid::nested || unions;
    base = folded ? std::vector<int64_t>{finest} : scales;
  }
  // Every cell of these scales pooled from the map by itself.
  explicit Regions(at::IntArrayRef scale_list) : scales(checked(scale_list)), base(scales), folded(false) {}

  int64_t cells() const { return cell_count(scales); }
  int64_t base_cells() const { return cell_count(base); }

 private:
  static std::vector<int64_t> checked(at::IntArrayRef scales) {
    TORCH_CHECK_VALUE(!scales.empty(), "scales must hold at least one scale");
    for (const int64_t scale : scales) TORCH_CHECK_VALUE(scale >= 1, "scales must be 1 or more, got ", scale);
    return scales.vec();
  }
};

struct GramOptions {
  std::vector<int64_t> scales;
  std::vector<double> scale_weights;
  Gram gram;
  Normalize normalize;
  double temperature;
  Reduction reduction;

  GramOptions(
      at::IntArrayRef scale_list, at::ArrayRef<double> weights, std::string_view gram_name,
      std::string_view normalize_name, double tau, std::string_view reduction_name)
      : scales(scale_list.vec()),
        scale_weights(weights.vec()),
        gram(parse_gram(gram_name)),
        normalize(parse_normalize(normalize_name)),
        temperature(tau),
        reduction(parse_reduction(reduction_name)) {
    TORCH_CHECK_VALUE(
        scales.size() == scale_weights.size(), "scale_weights must have one weight for each of the ", scales.size(),
        " scales, got ", scale_weights.size());
    TORCH_CHECK_VALUE(
        std::isfinite(temperature) && temperature > 0, "temperature must be finite and above 0, got ", temperature);
  }

  // Whether backward needs both networks' logits: every image's upstream gradient enters the other images' gradients.
  bool keeps_logits() const { return gram == Gram::sample && reduction == Reduction::none; }

  // What each of a scale's cells weighs in its image's loss: spatial has one matrix for the scale, the others average.
  std::vector<double> cell_weights() const {
    std::vector<double> weights;
    for (size_t s = 0; s < scales.size(); ++s) {
      const int64_t cells = scales[s] * scales[s];
      weights.insert(weights.end(), cells, gram == Gram::spatial ? scale_weights[s] : scale_weights[s] / cells);
    }
    return weights;
  }
};

}  // namespace icd
