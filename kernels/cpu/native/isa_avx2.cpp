// The CPU kernels compiled for AVX2, FMA and F16C, whatever the rest is compiled for.
// Standard headers come before the pragma: their inline functions may be shared with translation units that must run
// everywhere.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "products.h"
#include "vector_avx2.h"

namespace moegauge {
const Kernels *avx2_kernels() {
    __builtin_cpu_init();
    const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return here ? x86_table<Avx2>() : nullptr;
}
}  // namespace moegauge
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
namespace moegauge {
const Kernels *avx2_kernels() { return nullptr; }
}  // namespace moegauge
#endif
