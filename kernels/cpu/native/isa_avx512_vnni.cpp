// The CPU kernels compiled for AVX-512 with VNNI (4-bit products go straight into 32-bit sums).
// See isa_avx2.cpp for the order of the headers.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#include "products.h"
#include "vector_avx512_vnni.h"

namespace moegauge {
const Kernels *avx512_vnni_kernels() {
    __builtin_cpu_init();
    const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("f16c");
    return here ? x86_table<Avx512Vnni>() : nullptr;
}
}  // namespace moegauge
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
namespace moegauge {
const Kernels *avx512_vnni_kernels() { return nullptr; }
}  // namespace moegauge
#endif
