// The choices among forms of the loss, numbered as in icd_kernels/options.py.
#pragma once

#include <cstdint>

namespace icd {

enum class Gram : int64_t { class_, spatial, sample };
enum class Reduction : int64_t { mean, sum, none };

}  // namespace icd
