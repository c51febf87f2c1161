// The CPU kernels compiled for AVX-512 with VBMI, GFNI and VNNI (Zen 4 and Ice Lake, and later).
// See isa_avx2.cpp for the order of the headers.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni,avx2,fma,f16c")
#endif
#include "products.h"
#include "vector_avx512_vbmi.h"

namespace moegauge {
const Kernels *avx512_vbmi_kernels() {
    __builtin_cpu_init();
    const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni") &&
                      __builtin_cpu_supports("f16c");
    return here ? x86_table<Avx512Vbmi>() : nullptr;
}
}  // namespace moegauge
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
namespace moegauge {
const Kernels *avx512_vbmi_kernels() { return nullptr; }
}  // namespace moegauge
#endif
