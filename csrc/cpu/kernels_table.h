// Compiles every CPU kernel for the instruction set that is in force where this file is included, inside the namespace
// ICD_INSTRUCTION_SET, and defines its table. No include guard: each kernels_*.cpp includes it once, after its pragma.
//
// The standard and c10 headers are included by kernels_*.cpp before the pragma. A function of theirs that was compiled
// for AVX-512 and not inlined could be the copy the linker keeps for the whole program.

#include "../common/chebyshev.h"
#include "../common/class_rows.h"
#include "../common/geometry.h"
#include "../common/row_math.h"

namespace icd::cpu::ICD_INSTRUCTION_SET {
namespace {

#include "vectors.h"
#include "map_blocks.h"
#include "pool_kernels.h"
#include "unpool_kernels.h"
#include "logit_kernels.h"
#include "gram_kernels.h"
#include "cell_size.h"
#include "symmetric_class.h"
#include "points_gram.h"
#include "linear_class.h"
#include "class_gram.h"
#include "row_kernels.h"

template <typename I, typename T>
constexpr MapKernels<I, T> map_kernels = {map_items<I>, map_scratch<I, T>, pool<I, T>, unpool<I, T>};

template <typename T>
constexpr LogitKernels<T> logit_kernels = {
    expand<T>, fold<T>, normalize<T>, normalize_backward<T>, class_scratch<T>, class_gram<T>, points_scratch<T>,
    points_gram<T>, gram_rows<T>, row_scratch, row_losses<T>};

}  // namespace
}  // namespace icd::cpu::ICD_INSTRUCTION_SET

#define ICD_TABLE_(set) kernels_##set
#define ICD_TABLE(set) ICD_TABLE_(set)
#define ICD_NAME_(set) #set
#define ICD_NAME(set) ICD_NAME_(set)

namespace icd::cpu {

using namespace ICD_INSTRUCTION_SET;

const Kernels ICD_TABLE(ICD_INSTRUCTION_SET) = {
    ICD_NAME(ICD_INSTRUCTION_SET),
    map_kernels<float, float>,
    map_kernels<c10::BFloat16, float>,
    map_kernels<c10::Half, float>,
    map_kernels<double, double>,
    map_kernels<float, double>,
    map_kernels<c10::BFloat16, double>,
    map_kernels<c10::Half, double>,
    logit_kernels<float>,
    logit_kernels<double>,
};

}  // namespace icd::cpu
