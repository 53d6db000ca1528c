// The normalisations of a local logit vector, by name.
#pragma once

namespace icd {

enum class Normalize { none, l2, zscore };

}  // namespace icd
