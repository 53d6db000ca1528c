// The CPU kernels for x86-64 machines with AVX-512 (F, DQ, BW, VL).
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#endif

#define ICD_INSTRUCTION_SET avx512
#define ICD_VECTOR_BYTES 64
#include "kernels_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
