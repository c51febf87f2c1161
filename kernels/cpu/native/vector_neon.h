// 16-byte vector operations for NEON on AArch64, no extension beyond Armv8.0.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

struct Neon {
    static constexpr int W = 16;
    static constexpr int REGISTERS = 32;
    static constexpr int STRIPS = 2;  // side by side (products_4bit.h)
    static constexpr const char *name = "NEON";
    using I = uint8x16_t;
    using F = float32x4_t;

    static I load(const void *p) { return vld1q_u8(static_cast<const uint8_t *>(p)); }
    static F loadf(const float *p) { return vld1q_f32(p); }
    static void storef(float *p, F v) { vst1q_f32(p, v); }
    static F zero() { return vdupq_n_f32(0); }
    static F set(float x) { return vdupq_n_f32(x); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static float sum(F v) { return vaddvq_f32(v); }
    static void sum4(F a, F b, F c, F d, float *out) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
    }
    static I xor_(I a, I b) { return veorq_u8(a, b); }
    static uint64_t fold(I v) {
        const uint64x2_t q = vreinterpretq_u64_u8(v);
        return vgetq_lane_u64(q, 0) ^ vgetq_lane_u64(q, 1);
    }

    static I low_nibbles(I w) { return vandq_u8(w, vdupq_n_u8(15)); }
    static I high_nibbles(I w) { return vshrq_n_u8(w, 4); }
    static I table(const uint8_t *sixteen) { return load(sixteen); }
    static I lookup_low(I table, I w) { return vqtbl1q_u8(table, low_nibbles(w)); }
    static I lookup_high(I table, I w) { return vqtbl1q_u8(table, high_nibbles(w)); }

    struct Sum {  // 16-bit sums; see vector_avx2.h
        int16x8_t low, high;
    };
    static Sum first(I weights, I inputs, I) {
        const int8x16_t w = vreinterpretq_s8_u8(weights), x = vreinterpretq_s8_u8(inputs);
        return {vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)};
    }
    static Sum more(Sum sum, I weights, I inputs) {
        const int8x16_t w = vreinterpretq_s8_u8(weights), x = vreinterpretq_s8_u8(inputs);
        return {vmlal_s8(sum.low, vget_low_s8(w), vget_low_s8(x)), vmlal_high_s8(sum.high, w, x)};
    }
    static void settle(Sum &) {}
    static I total(Sum high, Sum low, I start) {
        return add32(vreinterpretq_u8_s32(vaddq_s32(vshlq_n_s32(fours(high), 7), fours(low))), start);
    }
    static I spread(const void *four_bytes) {
        uint32_t v;
        std::memcpy(&v, four_bytes, 4);
        return vreinterpretq_u8_u32(vdupq_n_u32(v));
    }
    static I add32(I a, I b) {
        return vreinterpretq_u8_s32(vaddq_s32(vreinterpretq_s32_u8(a), vreinterpretq_s32_u8(b)));
    }
    static F to_float(I v) { return vcvtq_f32_s32(vreinterpretq_s32_u8(v)); }

    static I widen_low(const void *p) { return vreinterpretq_u8_s16(vmovl_s8(vld1_s8(static_cast<const int8_t *>(p)))); }
    static I widen_high(const void *p) { return widen_low(static_cast<const uint8_t *>(p) + 8); }
    static I madd(I a, I b) {
        const int16x8_t x = vreinterpretq_s16_u8(a), y = vreinterpretq_s16_u8(b);
        return vreinterpretq_u8_s32(vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
    }

    static I even_halves(I w) { return half_bits(vshlq_n_s16(vreinterpretq_s16_u8(w), 8)); }
    static I odd_halves(I w) { return half_bits(vreinterpretq_s16_u8(w)); }
    static F half_low(I h) { return vcvt_f32_f16(vget_low_f16(vreinterpretq_f16_u8(h))); }
    static F half_high(I h) { return vcvt_high_f32_f16(vreinterpretq_f16_u8(h)); }

    static constexpr bool DIRECT_FP8 = false;
    static F bf16_even(I w) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(w), 16)); }
    static F bf16_odd(I w) {
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(w), vdupq_n_u32(0xFFFF0000u)));
    }

    static F scales_e8m0(const uint8_t *s) {  // code 0 is 2^-127, subnormal
        return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(bytes(s), 23), vdupq_n_u32(0x00400000)));
    }
    static F scales_bf16(const uint8_t *s) {
        uint16x4_t v;
        std::memcpy(&v, s, 8);
        return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
    }
    static F scales_e4m3(const uint8_t *s) {  // divided by 2^120
        const uint32x4_t b = bytes(s);
        return vreinterpretq_f32_u32(vorrq_u32(vshlq_n_u32(vandq_u32(b, vdupq_n_u32(128)), 24),
                                               vshlq_n_u32(vandq_u32(b, vdupq_n_u32(127)), 20)));
    }

  private:
    static uint32x4_t bytes(const uint8_t *s) {
        uint32_t v;
        std::memcpy(&v, s, 4);
        return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(v))));
    }
    static int32x4_t fours(Sum s) { return vpaddlq_s16(vpaddq_s16(s.low, s.high)); }
    static I half_bits(int16x8_t high_bytes) {
        return vreinterpretq_u8_s16(vandq_s16(vshrq_n_s16(high_bytes, 1), vdupq_n_s16(static_cast<int16_t>(0xBF80))));
    }
};

}  // namespace
}  // namespace moegauge
