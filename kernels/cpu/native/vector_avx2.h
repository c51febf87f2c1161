// 32-byte vector operations for AVX2, FMA, F16C.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

struct Avx2 {
    static constexpr int W = 32;
    static constexpr int REGISTERS = 16;
    static constexpr int STRIPS = 2;  // side by side (products_4bit.h)
    static constexpr const char *name = "AVX2";
    using I = __m256i;
    using F = __m256;

    static I load(const void *p) { return _mm256_loadu_si256(static_cast<const I *>(p)); }
    static F loadf(const float *p) { return _mm256_loadu_ps(p); }
    static void storef(float *p, F v) { _mm256_storeu_ps(p, v); }
    static F zero() { return _mm256_setzero_ps(); }
    static F set(float x) { return _mm256_set1_ps(x); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static float sum(F v) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
    static void sum4(F a, F b, F c, F d, float *out) {  // transposed and added inside each 128 bits, then those
        const F ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        const F cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        const F all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
    }
    static I xor_(I a, I b) { return _mm256_xor_si256(a, b); }
    static uint64_t fold(I v) {
        return static_cast<uint64_t>(_mm256_extract_epi64(v, 0) ^ _mm256_extract_epi64(v, 1) ^
                                     _mm256_extract_epi64(v, 2) ^ _mm256_extract_epi64(v, 3));
    }

    // 4-bit: the low and high nibbles of every byte.
    static I low_nibbles(I w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
    static I high_nibbles(I w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }
    static I table(const uint8_t *sixteen) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(sixteen)));
    }
    static I lookup_low(I table, I w) { return _mm256_shuffle_epi8(table, low_nibbles(w)); }
    static I lookup_high(I table, I w) { return _mm256_shuffle_epi8(table, high_nibbles(w)); }

    // Running sums of unsigned weights (at most 24) times signed inputs (at most 64), and 128 times one such sum plus
    // another plus `start`, as 32-bit lanes; `start` is handed to the low sum's first products too, and one of the two
    // uses it. Eight times 2 * 24 * 64 fits 16 bits: a run of 32 columns.
    using Sum = I;
    static Sum first(I weights, I inputs, I) { return _mm256_maddubs_epi16(weights, inputs); }
    static Sum more(Sum sum, I weights, I inputs) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, inputs)); }
    // The sum as it stands here, in a register. Without it GCC 12 computes a run's products first and adds them later, by
    // way of thirty spills.
    static void settle(Sum &sum) { asm("" : "+x"(sum)); }
    static I total(Sum high, Sum low, I start) {
        return _mm256_add_epi32(_mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(128)),
                                                 _mm256_madd_epi16(low, _mm256_set1_epi16(1))), start);
    }
    static I spread(const void *four_bytes) {
        int v;
        std::memcpy(&v, four_bytes, 4);
        return _mm256_set1_epi32(v);
    }
    static I add32(I a, I b) { return _mm256_add_epi32(a, b); }
    static F to_float(I v) { return _mm256_cvtepi32_ps(v); }

    // Eight bits: sign-extended halves, and the product of 16-bit pairs.
    static I widen_low(const void *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i *>(p))); }
    static I widen_high(const void *p) { return widen_low(static_cast<const uint8_t *>(p) + 16); }
    static I madd(I a, I b) { return _mm256_madd_epi16(a, b); }

    // e4m3 as float16 divided by 256: sign, four exponent bits and three mantissa bits moved to their float16 places.
    static I even_halves(I w) { return half_bits(_mm256_slli_epi16(w, 8)); }
    static I odd_halves(I w) { return half_bits(w); }
    static F half_low(I h) { return _mm256_cvtph_ps(_mm256_castsi256_si128(h)); }
    static F half_high(I h) { return _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)); }

    // W codes of e4m3 as float32 divided by 2^120, and which column is lane i of f[j].
    static constexpr bool DIRECT_FP8 = false;
    static void e4m3_direct(I w, F (&f)[4]) {
        const I even = bf16_bits(_mm256_slli_epi16(w, 8)), odd = bf16_bits(w);
        f[0] = bf16_even(even), f[1] = bf16_even(odd), f[2] = bf16_odd(even), f[3] = bf16_odd(odd);
    }
    static constexpr int e4m3_column(int j, int i) { return 4 * i + j; }

    static F bf16_even(I w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
    static F bf16_odd(I w) { return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(-65536))); }

    // One scale per lane.
    static F scales_e8m0(const uint8_t *s) {
        const I bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(s))), 23);
        return _mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(0x00400000)));  // code 0 is 2^-127, subnormal
    }
    static F scales_bf16(const uint8_t *s) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(s))), 16));
    }
    static F scales_e4m3(const uint8_t *s) {  // divided by 2^120
        const I wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(s)));
        return _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(wide, 20), _mm256_set1_epi32(static_cast<int>(0x87F00000))));
    }

  private:
    static I bf16_bits(I high_bytes) {
        return _mm256_and_si256(_mm256_srai_epi16(high_bytes, 4), _mm256_set1_epi16(static_cast<short>(0x87F0)));
    }
    static I half_bits(I high_bytes) {
        return _mm256_and_si256(_mm256_srai_epi16(high_bytes, 1), _mm256_set1_epi16(static_cast<short>(0xBF80)));
    }
};

}  // namespace
}  // namespace moegauge
