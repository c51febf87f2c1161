// 32-byte vectors: AVX2, FMA, F16C.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

struct Avx2 {
    static constexpr int W = 32;
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
    static I lookup(I table, I index) { return _mm256_shuffle_epi8(table, index); }

    // Unsigned bytes a, b (at most 24) times signed 16-bit inputs 256 h + l, summed over four bytes of a and of b.
    // 2 * 2 * 24 * 128 = 12,288 fits the 16-bit sums.
    static I dot(I a, I b, I ha, I hb, I la, I lb) {
        I high = _mm256_add_epi16(_mm256_maddubs_epi16(a, ha), _mm256_maddubs_epi16(b, hb));
        I low = _mm256_add_epi16(_mm256_maddubs_epi16(a, la), _mm256_maddubs_epi16(b, lb));
        return _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(256)),
                                _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
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

    // e4m3 as bfloat16 divided by 2^120.
    static constexpr bool DIRECT_FP8 = false;
    static I even_bf16(I w) { return bf16_bits(_mm256_slli_epi16(w, 8)); }
    static I odd_bf16(I w) { return bf16_bits(w); }

    static F bf16_even(I w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
    static F bf16_odd(I w) { return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(-65536))); }

    // Scales, spread over the lanes of the four-byte sums they belong to: a group of 32 weights is four lanes.
    static F e8m0_per_32(const uint8_t *s) {
        uint16_t two;
        std::memcpy(&two, s, 2);
        const I spread = _mm256_setr_epi8(-1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1, 0,  //
                                          -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1, 1);
        return _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_shuffle_epi8(_mm256_set1_epi16(static_cast<short>(two)), spread), 1));
    }
    static F bf16_per_32(const uint8_t *s) {
        int two;
        std::memcpy(&two, s, 4);
        const I spread = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1,  //
                                          -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3);
        return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi32(two), spread));
    }
    static F e4m3_per_16(const uint8_t *s) {  // divided by 256
        int four;
        std::memcpy(&four, s, 4);
        const __m128i spread = _mm_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3);
        const __m128i h = _mm_shuffle_epi8(_mm_set1_epi32(four), spread);
        return _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(h, 1), _mm_set1_epi16(static_cast<short>(0xBF80))));
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
