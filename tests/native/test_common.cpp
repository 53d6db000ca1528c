// Unit tests of the headers that host and device share, against libm in a wider type. Prints a line for each, and exits
// with the number of those that failed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/common/chebyshev.h"
#include "../../csrc/common/class_rows.h"
#include "../../csrc/common/geometry.h"
#include "../../csrc/common/normalize.h"
#include "../../csrc/common/row_math.h"

namespace {

using Wide = long double;

int failures = 0;

void report(const char* name, Wide worst, Wide limit) {
  const bool failed = !(worst <= limit);
  failures += failed;
  std::printf("%s %s: %.3Lg, at most %.3Lg\n", failed ? "FAILED" : "passed", name, worst, limit);
}

void expect(const char* name, bool holds) {
  failures += !holds;
  std::printf("%s %s\n", holds ? "passed" : "FAILED", name);
}

// Error in units of the last place of `exact` in T.
template <typename T>
Wide in_ulps(T got, Wide exact) {
  const T rounded = std::fabs(static_cast<T>(exact));
  const T next = std::nextafter(rounded, std::numeric_limits<T>::infinity());
  return std::fabs(static_cast<Wide>(got) - exact) / (static_cast<Wide>(next) - static_cast<Wide>(rounded));
}

template <typename T>
void exponentials(const char* name, T smallest) {
  std::mt19937_64 generator(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  Wide worst = 0;
  for (int i = 0; i < 200000; ++i) {
    // evenly over the range, and close to zero at every size
    const double draw = uniform(generator);
    const T x = i % 2 ? static_cast<T>(draw * static_cast<double>(smallest)) : static_cast<T>(-std::pow(10.0, -12 * draw));
    worst = std::max(worst, in_ulps(icd::exp_nonpositive(x), std::exp(static_cast<Wide>(x))));
  }
  report(name, worst, 2);
  expect("exp(0) is 1", icd::exp_nonpositive(T(0)) == T(1));
  expect("exp(NaN) is NaN", std::isnan(icd::exp_nonpositive(std::numeric_limits<T>::quiet_NaN())));
  const T least = icd::exp_nonpositive(-std::numeric_limits<T>::infinity());
  expect("exp(-inf) is 0 or too small to be seen", least >= T(0) && least <= 2 * std::numeric_limits<T>::min());
}

// A row's KL from its logits, in T as a kernel does it.
template <typename T>
T row_kl(const std::vector<T>& s, const std::vector<T>& t) {
  T s_sum = 0, t_sum = 0, kl = 0;
  const T s_top = *std::max_element(s.begin(), s.end()), t_top = *std::max_element(t.begin(), t.end());
  for (size_t j = 0; j < s.size(); ++j) {
    s_sum += icd::exp_nonpositive(s[j] - s_top);
    t_sum += icd::exp_nonpositive(t[j] - t_top);
  }
  for (size_t j = 0; j < s.size(); ++j) {
    const T q = icd::exp_nonpositive(s[j] - s_top) / s_sum, p = icd::exp_nonpositive(t[j] - t_top) / t_sum;
    kl += icd::kl_term(p, q, (s[j] - s_top) - (t[j] - t_top) - std::log(s_sum / t_sum));
  }
  return kl;
}

template <typename T>
Wide exact_kl(const std::vector<T>& s, const std::vector<T>& t) {
  Wide s_sum = 0, t_sum = 0, kl = 0;
  for (size_t j = 0; j < s.size(); ++j) {
    s_sum += std::exp(static_cast<Wide>(s[j]));
    t_sum += std::exp(static_cast<Wide>(t[j]));
  }
  for (size_t j = 0; j < s.size(); ++j) {
    const Wide log_p = static_cast<Wide>(t[j]) - std::log(t_sum), log_q = static_cast<Wide>(s[j]) - std::log(s_sum);
    kl += std::exp(log_p) * (log_p - log_q);
  }
  return kl;
}

// Rows that differ by `difference`: their KL, of the order of its square, keeps its digits.
template <typename T>
void divergences(const char* name, double difference, Wide limit) {
  std::mt19937_64 generator(2);
  std::normal_distribution<double> normal;
  Wide worst = 0;
  for (int i = 0; i < 500; ++i) {
    std::vector<T> s, t;
    for (int j = 0; j < 20; ++j) {
      t.push_back(static_cast<T>(normal(generator)));
      s.push_back(static_cast<T>(static_cast<double>(t.back()) + difference * normal(generator)));
    }
    const Wide exact = exact_kl(s, t);
    worst = std::max(worst, std::fabs(row_kl(s, t) - exact) / exact);
  }
  report(name, worst, limit);
}

template <typename T>
void kl_terms() {
  expect("kl_term of equal rows is 0", icd::kl_term(T(0.25), T(0.25), T(0)) == T(0));
  bool non_negative = true;
  for (int i = -400; i <= 400; ++i) {
    const T d = static_cast<T>(i) / 200, p = T(0.3);
    non_negative = non_negative && icd::kl_term(p, p * std::exp(d), d) >= T(0);
  }
  expect("kl_term is never negative", non_negative);
  expect("kl_term of NaN is NaN", std::isnan(icd::kl_term(T(0.3), T(0.3), std::numeric_limits<T>::quiet_NaN())));
}

// Σ_k weight_k h_k as a function of z, h normalised
Wide objective(const icd::Normalization& by, const std::vector<Wide>& z, const std::vector<Wide>& weights) {
  const auto count = static_cast<Wide>(z.size());
  Wide mean = 0, square = 0, sum = 0;
  for (const Wide value : z) mean += by.centre * value / count;
  for (const Wide value : z) square += (value - mean) * (value - mean);
  const Wide statistic = by.spread == 0 ? 1 : by.spread * std::sqrt(square);
  for (size_t k = 0; k < z.size(); ++k) {
    sum += weights[k] * (z[k] - mean) / icd::floor_statistic(static_cast<double>(statistic));
  }
  return sum;
}

void normalize_derivatives(const char* name, const icd::Normalization& by, double scale) {
  std::mt19937_64 generator(3);
  std::normal_distribution<double> normal;
  std::vector<Wide> z, weights;
  for (int k = 0; k < 7; ++k) {
    z.push_back(scale * normal(generator));
    weights.push_back(normal(generator));
  }
  const double count = 7;
  double mean = 0, square = 0, mean_dh = 0, inner = 0;
  for (const Wide value : z) mean += by.centre * static_cast<double>(value) / count;
  for (const Wide value : z) square += (static_cast<double>(value) - mean) * (static_cast<double>(value) - mean);
  const double statistic = by.spread == 0 ? 1 : by.spread * std::sqrt(square);
  std::vector<double> h;
  for (size_t k = 0; k < z.size(); ++k) {
    h.push_back((static_cast<double>(z[k]) - mean) / icd::floor_statistic(statistic));
    mean_dh += by.centre * static_cast<double>(weights[k]) / count;
    inner += by.spread * by.spread * static_cast<double>(weights[k]) * h[k];
  }
  Wide worst = 0;
  for (size_t k = 0; k < z.size(); ++k) {
    const Wide step = 1e-5L * scale, before = z[k];
    z[k] = before + step;
    Wide difference = objective(by, z, weights);
    z[k] = before - step;
    difference = (difference - objective(by, z, weights)) / (2 * step);
    z[k] = before;
    const double got = icd::normalize_derivative(static_cast<double>(weights[k]), h[k], mean_dh, inner, statistic);
    worst = std::max(worst, std::fabs(got - difference) / std::max<Wide>(std::fabs(difference), 1 / scale));
  }
  report(name, worst, 1e-8L);
}

// Largest error of interpolating e^{-span u}, u in [0, 1], in `count` Chebyshev nodes, by the barycentric formula.
Wide interpolation_error(Wide span, int64_t count) {
  const Wide pi = 3.14159265358979323846264L;
  Wide worst = 0;
  for (int point = 0; point <= 500; ++point) {
    const Wide u = static_cast<Wide>(point) / 500 - 1e-7L * (point == 500);
    Wide above = 0, below = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Wide angle = (static_cast<Wide>(i) + 0.5L) * pi / static_cast<Wide>(count), node = (1 + std::cos(angle)) / 2;
      const Wide weight = (i % 2 ? -1 : 1) * std::sin(angle) / (u - node);
      above += weight * std::exp(-span * node);
      below += weight;
    }
    worst = std::max(worst, std::fabs(above / below - std::exp(-span * u)));
  }
  return worst;
}

void chebyshev_counts() {
  bool smallest = true;
  Wide worst = 0;  // error / allowed
  for (const double span : {1e-3, 0.3, 1.0, 10.0, 100.0, 1e3, 1e4}) {
    for (const double error : {1e-6, 1e-10, 1e-14}) {
      const int64_t count = icd::chebyshev_nodes(span, error);
      worst = std::max(worst, interpolation_error(span, count) / (error + 1e-16L * std::max(1.0, span)));
      smallest = smallest && (count <= icd::fewest_nodes(span / 2, error) ||
                              !icd::nodes_suffice(count - icd::kNodeStep, span / 2, error));
    }
  }
  report("interpolation error, of that allowed", worst, 1);
  expect("no fewer nodes would do by the bound", smallest);
  const double infinity = std::numeric_limits<double>::infinity();
  expect("too wide a span has no nodes", icd::chebyshev_nodes(1e7, 1e-10) == 0 && icd::chebyshev_nodes(infinity, 1e-10) == 0);
  expect("a span of NaN has no nodes", icd::chebyshev_nodes(std::nan(""), 1e-10) == 0);
}

// The bound by which rows are called close, and a row's KL from its means, on random rows.
void class_rows() {
  std::mt19937_64 generator(4);
  std::normal_distribution<double> normal;
  const double temperature = 2;
  Wide worst = 0;
  bool bounded = true, some = false;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<double> s, t, s_row, t_row;
    for (int j = 0; j < 12; ++j) {
      t.push_back(normal(generator));
      s.push_back(t.back() + (trial % 2 ? 0.1 : 0.01) * normal(generator));
    }
    const double s_top = s[0] < 0 ? *std::min_element(s.begin(), s.end()) : *std::max_element(s.begin(), s.end());
    const double t_top = t[0] < 0 ? *std::min_element(t.begin(), t.end()) : *std::max_element(t.begin(), t.end());
    double s_sum = 0, t_sum = 0, own = 0, other = 0, difference = 0, s_size = 0, t_size = 0;
    for (int j = 0; j < 12; ++j) {
      s_row.push_back(s[0] * s[j] / temperature);
      t_row.push_back(t[0] * t[j] / temperature);
      const double p = std::exp(t[0] / temperature * (t[j] - t_top));
      s_sum += std::exp(s[0] / temperature * (s[j] - s_top));
      t_sum += p;
      own += p * (t[j] - t_top);
      other += p * s[j];
      difference = std::max(difference, std::fabs(s[j] - t[j]));
      s_size = std::max(s_size, std::fabs(s[j]));
      t_size = std::max(t_size, std::fabs(t[j]));
    }
    const Wide exact = exact_kl(s_row, t_row);
    const double got =
        icd::row_kl(s[0], t[0], 1 / temperature, own / t_sum, other / t_sum, s_top, std::log(s_sum / t_sum));
    worst = std::max(worst, std::fabs(got - exact));
    const bool close = icd::are_close(difference, s_size + t_size, temperature);
    bounded = bounded && (exact < icd::kCloseRows || !close);
    some = some || close;
  }
  report("a row's KL from its means, absolute error", worst, 1e-14L);
  expect("rows called close are close", bounded && some);
}

void windows() {
  bool bounds = true, covered = true, inverse = true;
  for (int64_t extent = 1; extent <= 40; ++extent) {
    for (int64_t scale = 1; scale <= 40; ++scale) {
      std::vector<int> seen(extent, 0);
      for (int64_t i = 0; i < scale; ++i) {
        const icd::Window window = icd::window(i, scale, extent);
        const auto start = static_cast<int64_t>(std::floor(static_cast<double>(i * extent) / scale));
        const auto stop = static_cast<int64_t>(std::ceil(static_cast<double>((i + 1) * extent) / scale));
        bounds = bounds && window.start == start && window.stop == stop && icd::length(window) >= 1 && stop <= extent;
        for (int64_t pixel = window.start; pixel < window.stop; ++pixel) ++seen[pixel];
        for (int64_t pixel = 0; pixel < extent; ++pixel) {
          const icd::Window cells = icd::covering(pixel, scale, extent);
          const bool over = window.start <= pixel && pixel < window.stop;
          inverse = inverse && over == (cells.start <= i && i < cells.stop);
        }
      }
      covered = covered && *std::min_element(seen.begin(), seen.end()) >= 1;
    }
  }
  expect("windows are AdaptiveAvgPool2d's", bounds);
  expect("windows cover every pixel", covered);
  expect("covering is the inverse of window", inverse);
  const icd::Window last = icd::window((int64_t{1} << 30) - 1, int64_t{1} << 30, int64_t{1} << 31);
  expect("windows count in 64 bits", last.stop == int64_t{1} << 31 && icd::length(last) == 2);
}

}  // namespace

int main() {
  exponentials<float>("float32 exp, ulps", -87.0f);
  exponentials<double>("float64 exp, ulps", -708.0);
  kl_terms<float>();
  kl_terms<double>();
  divergences<float>("float32 KL of rows 0.1 apart, relative error", 1e-1, 3e-5L);
  divergences<float>("float32 KL of rows 0.01 apart, relative error", 1e-2, 1e-4L);
  divergences<float>("float32 KL of rows 0.001 apart, relative error", 1e-3, 1e-3L);
  divergences<double>("float64 KL of rows 0.001 apart, relative error", 1e-3, 1e-10L);
  divergences<double>("float64 KL of rows 1e-5 apart, relative error", 1e-5, 1e-6L);
  const icd::Normalization l2 = {.centre = 0, .spread = 1}, zscore = {.centre = 1, .spread = 1 / std::sqrt(7.0)};
  normalize_derivatives("l2 derivative, relative error", l2, 1);
  normalize_derivatives("zscore derivative, relative error", zscore, 1);
  normalize_derivatives("center derivative, relative error", {.centre = 1, .spread = 0}, 1);
  normalize_derivatives("l2 derivative below the floor, relative error", l2, 1e-14);
  normalize_derivatives("zscore derivative below the floor, relative error", zscore, 1e-14);
  chebyshev_counts();
  class_rows();
  windows();
  std::printf("%d failed\n", failures);
  return failures;
}
