// 64-byte vector operations for AVX-512 F, BW, VL.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

struct Avx512 {
    static constexpr int W = 64;
    static constexpr int REGISTERS = 32;
    static constexpr int STRIPS = 1;  // side by side (products_4bit.h)
    static constexpr const char *name = "AVX-512";
    using I = __m512i;
    using F = __m512;

    static I load(const void *p) { return _mm512_loadu_si512(p); }
    static F loadf(const float *p) { return _mm512_loadu_ps(p); }
    static void storef(float *p, F v) { _mm512_storeu_ps(p, v); }
    static F zero() { return _mm512_setzero_ps(); }
    static F set(float x) { return _mm512_set1_ps(x); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static float sum(F v) { return _mm512_reduce_add_ps(v); }
    // Four sums in 13 instructions: rows of four are transposed and added inside each 128 bits, then those.
    static void sum4(F a, F b, F c, F d, float *out) {
        const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const F all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
    }
    static I xor_(I a, I b) { return _mm512_xor_si512(a, b); }
    static uint64_t fold(I v) {
        alignas(64) uint64_t parts[8];
        _mm512_store_si512(parts, v);
        uint64_t all = 0;
        for (uint64_t p : parts) all ^= p;
        return all;
    }

    static I low_nibbles(I w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
    static I high_nibbles(I w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
    static I table(const uint8_t *sixteen) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(sixteen)));
    }
    static I lookup_low(I table, I w) { return _mm512_shuffle_epi8(table, low_nibbles(w)); }
    static I lookup_high(I table, I w) { return _mm512_shuffle_epi8(table, high_nibbles(w)); }

    using Sum = I;  // see vector_avx2.h
    static Sum first(I weights, I inputs, I) { return _mm512_maddubs_epi16(weights, inputs); }
    static Sum more(Sum sum, I weights, I inputs) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights, inputs)); }
    // The sum as it stands here, in a register. Without it GCC 12 computes a run's products first and adds them later, by
    // way of thirty spills.
    static void settle(Sum &sum) { asm("" : "+v"(sum)); }
    static I total(Sum high, Sum low, I start) {
        return _mm512_add_epi32(_mm512_add_epi32(_mm512_madd_epi16(high, _mm512_set1_epi16(128)),
                                                 _mm512_madd_epi16(low, _mm512_set1_epi16(1))), start);
    }
    static I spread(const void *four_bytes) {
        int v;
        std::memcpy(&v, four_bytes, 4);
        return _mm512_set1_epi32(v);
    }
    static I add32(I a, I b) { return _mm512_add_epi32(a, b); }
    static F to_float(I v) { return _mm512_cvtepi32_ps(v); }

    static I widen_low(const void *p) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i *>(p)));
    }
    static I widen_high(const void *p) { return widen_low(static_cast<const uint8_t *>(p) + 32); }
    static I madd(I a, I b) { return _mm512_madd_epi16(a, b); }

    static I even_halves(I w) { return half_bits(_mm512_slli_epi16(w, 8)); }
    static I odd_halves(I w) { return half_bits(w); }
    static F half_low(I h) { return _mm512_cvtph_ps(_mm512_castsi512_si256(h)); }
    static F half_high(I h) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)); }

    static constexpr bool DIRECT_FP8 = false;  // see vector_avx2.h
    static void e4m3_direct(I w, F (&f)[4]) {
        const I even = bf16_bits(_mm512_slli_epi16(w, 8)), odd = bf16_bits(w);
        f[0] = bf16_even(even), f[1] = bf16_even(odd), f[2] = bf16_odd(even), f[3] = bf16_odd(odd);
    }
    static constexpr int e4m3_column(int j, int i) { return 4 * i + j; }
    // `first` in the first eight lanes, `last` in the last eight.
    static F halves(float first, float last) { return _mm512_mask_blend_ps(0xFF00, set(first), set(last)); }

    static F bf16_even(I w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
    static F bf16_odd(I w) { return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(-65536))); }

    static F scales_e8m0(const uint8_t *s) {
        const I bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(s))), 23);
        return _mm512_castsi512_ps(_mm512_max_epi32(bits, _mm512_set1_epi32(0x00400000)));  // code 0 is 2^-127, subnormal
    }
    static F scales_bf16(const uint8_t *s) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(s))), 16));
    }
    static F scales_e4m3(const uint8_t *s) {  // divided by 2^120
        const I wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(s)));
        return _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(wide, 20), _mm512_set1_epi32(static_cast<int>(0x87F00000))));
    }

  private:
    static I bf16_bits(I high_bytes) {
        return _mm512_and_si512(_mm512_srai_epi16(high_bytes, 4), _mm512_set1_epi16(static_cast<short>(0x87F0)));
    }
    static I half_bits(I high_bytes) {
        return _mm512_and_si512(_mm512_srai_epi16(high_bytes, 1), _mm512_set1_epi16(static_cast<short>(0xBF80)));
    }
};

}  // namespace
}  // namespace moegauge
