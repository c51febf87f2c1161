// 16-byte vectors: NEON on AArch64, no extension beyond Armv8.0.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

struct Neon {
    static constexpr int W = 16;
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
    static I xor_(I a, I b) { return veorq_u8(a, b); }
    static uint64_t fold(I v) {
        const uint64x2_t q = vreinterpretq_u64_u8(v);
        return vgetq_lane_u64(q, 0) ^ vgetq_lane_u64(q, 1);
    }

    static I low_nibbles(I w) { return vandq_u8(w, vdupq_n_u8(15)); }
    static I high_nibbles(I w) { return vshrq_n_u8(w, 4); }
    static I table(const uint8_t *sixteen) { return load(sixteen); }
    static I lookup(I table, I index) { return vqtbl1q_u8(table, index); }

    // a, b at most 24, h and l signed: eight products of at most 24 * 128 fit the 16-bit sums.
    static I dot(I a, I b, I ha, I hb, I la, I lb) {
        const int32x4_t high = quads(a, b, ha, hb), low = quads(a, b, la, lb);
        return vreinterpretq_u8_s32(vaddq_s32(vshlq_n_s32(high, 8), low));
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

    static F e8m0_per_32(const uint8_t *s) {
        return vreinterpretq_f32_u32(vdupq_n_u32(static_cast<uint32_t>(*s) << 23));
    }
    static F bf16_per_32(const uint8_t *s) {
        uint16_t v;
        std::memcpy(&v, s, 2);
        return vreinterpretq_f32_u32(vdupq_n_u32(static_cast<uint32_t>(v) << 16));
    }
    static F e4m3_per_16(const uint8_t *s) {  // two scales, each for two lanes; divided by 256
        const int16_t a = static_cast<int16_t>(s[0] << 8), b = static_cast<int16_t>(s[1] << 8);
        const int16_t lanes[8] = {a, a, b, b, 0, 0, 0, 0};
        return half_low(half_bits(vld1q_s16(lanes)));
    }

  private:
    static I half_bits(int16x8_t high_bytes) {
        return vreinterpretq_u8_s16(vandq_s16(vshrq_n_s16(high_bytes, 1), vdupq_n_s16(static_cast<int16_t>(0xBF80))));
    }
    static int32x4_t quads(I a, I b, I xa, I xb) {
        const int8x16_t p = vreinterpretq_s8_u8(a), q = vreinterpretq_s8_u8(b);
        const int8x16_t x = vreinterpretq_s8_u8(xa), y = vreinterpretq_s8_u8(xb);
        const int16x8_t first = vmlal_s8(vmull_s8(vget_low_s8(p), vget_low_s8(x)), vget_low_s8(q), vget_low_s8(y));
        const int16x8_t second = vmlal_high_s8(vmull_high_s8(p, x), q, y);
        return vpaddlq_s16(vpaddq_s16(first, second));
    }
};

}  // namespace
}  // namespace moegauge
