// How the class Gram's sums are taken.
#pragma once

namespace icd {

// `automatic` is linear in K wherever that is the faster, and exact elsewhere.
enum class ClassSum { automatic, exact, linear };

}  // namespace icd
