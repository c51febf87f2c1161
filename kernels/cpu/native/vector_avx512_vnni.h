// 64-byte vector operations for AVX-512 with VNNI: 4-bit products go straight into 32-bit sums.
#pragma once
#include "vector_avx512.h"

namespace moegauge {
namespace {

struct Avx512Vnni : Avx512 {
    static constexpr const char *name = "AVX-512 VNNI";
    static Sum first(I weights, I inputs, I start) { return _mm512_dpbusd_epi32(start, weights, inputs); }
    static Sum more(Sum sum, I weights, I inputs) { return _mm512_dpbusd_epi32(sum, weights, inputs); }
    static I total(Sum high, Sum low, I) { return _mm512_add_epi32(_mm512_slli_epi32(high, 7), low); }
};

}  // namespace
}  // namespace moegauge
