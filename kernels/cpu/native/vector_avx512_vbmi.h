// 64-byte vector operations for AVX-512 with VNNI, VBMI (a table of 64 bytes) and GFNI (any order of a byte's bits).
#pragma once
#include "vector_avx512_vnni.h"

namespace moegauge {
namespace {

struct Avx512Vbmi : Avx512Vnni {
    static constexpr const char *name = "AVX-512 VBMI";
    // A nibble looked up among 64 bytes that hold the table four times: the two bits above it do not matter, and no mask is
    // needed.
    static I lookup_low(I table, I w) { return _mm512_permutexvar_epi8(w, table); }
    static I lookup_high(I table, I w) { return _mm512_permutexvar_epi8(_mm512_srli_epi16(w, 4), table); }

    // The two upper bytes of every float32, then bytes into their places: 24 slots of a vector pipe for 64 weights, where
    // shifts and masks take 26 (docs/kernels.md).
    static void e4m3_direct(I w, F (&f)[4]) {
        const I high = _mm512_gf2p8affine_epi64_epi8(w, _mm512_set1_epi64(static_cast<long long>(0x1020400000000080)), 0);  // s0000eee
        const I low = _mm512_gf2p8affine_epi64_epi8(w, _mm512_set1_epi64(0x0000000001020408), 0);                          // emmm0000
        const I first = _mm512_unpacklo_epi8(low, high), last = _mm512_unpackhi_epi8(low, high), none = _mm512_setzero_si512();
        f[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(none, first));
        f[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(none, first));
        f[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(none, last));
        f[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(none, last));
    }
    static constexpr int e4m3_column(int j, int i) { return i / 4 * 16 + 4 * j + i % 4; }
};

}  // namespace
}  // namespace moegauge
