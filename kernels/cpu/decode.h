// How each format's products are computed: one struct per format, over the vector type V of an instruction set.
// A unit is the run of weights handled at once; its prepared input lies in the order the unit's vectors want, padded
// with zeros to whole units. unit<R, T> adds R rows times T inputs of one unit to acc.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

inline float get_float(const void *p) {
    float f;
    std::memcpy(&f, p, 4);
    return f;
}

template <class V>
struct DecodeF32 {
    using F = typename V::F;
    static constexpr int COLUMNS = 16, BYTES = 64, SCALES = 0, INPUT = 64;
    static void prepare(const float *x, uint8_t *out) { std::memcpy(out, x, 64); }
    template <int R, int T>
    static void unit(const uint8_t *const *w, const uint8_t *const *, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 64; v += V::W)
            for (int r = 0; r < R; ++r)
                for (int t = 0; t < T; ++t)
                    acc[r][t] = V::fma(V::loadf(reinterpret_cast<const float *>(w[r] + v)),
                                       V::loadf(reinterpret_cast<const float *>(x[t] + v)), acc[r][t]);
    }
};

// A 32-bit lane holds two weights; each becomes a float32 by a shift or a mask.
template <class V>
struct DecodeBf16 {
    using F = typename V::F;
    static constexpr int COLUMNS = 32, BYTES = 64, SCALES = 0, INPUT = 128;
    static void prepare(const float *x, uint8_t *out) {  // per vector: even columns, then odd ones
        float *o = reinterpret_cast<float *>(out);
        for (int v = 0; v < 32; v += V::W / 2)
            for (int i = 0; i < V::W / 4; ++i) {
                o[v + i] = x[v + 2 * i];
                o[v + V::W / 4 + i] = x[v + 2 * i + 1];
            }
    }
    template <int R, int T>
    static void unit(const uint8_t *const *w, const uint8_t *const *, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 64; v += V::W)
            for (int r = 0; r < R; ++r) {
                const auto q = V::load(w[r] + v);
                const F even = V::bf16_even(q), odd = V::bf16_odd(q);
                for (int t = 0; t < T; ++t) {
                    const float *xv = reinterpret_cast<const float *>(x[t] + 2 * v);
                    acc[r][t] = V::fma(even, V::loadf(xv), acc[r][t]);
                    acc[r][t] = V::fma(odd, V::loadf(xv + V::W / 4), acc[r][t]);
                }
            }
    }
};

// e4m3 through float16 (V::DIRECT_FP8 false) or straight to float32 divided by 2^120 (true), both exact; one block of 128
// columns shares a float32 scale, applied to the partial sum. Straight is half the instructions, but its subnormal codes
// become subnormal float32, which some CPUs multiply slowly (see isa_avx2.cpp). The NaN codes 0x7F and 0xFF read as
// +-480; packed weights never hold them (see packing.py).
template <class V>
struct DecodeFp8 {
    using F = typename V::F;
    static constexpr int COLUMNS = 128, BYTES = 128, SCALES = 4, INPUT = 512;
    static void prepare(const float *x, uint8_t *out) {  // per vector: in the order decode() returns
        constexpr int Q = V::W / 4;
        float *o = reinterpret_cast<float *>(out);
        for (int v = 0; v < 128; v += V::W)
            for (int i = 0; i < Q; ++i)
                for (int j = 0; j < 4; ++j)
                    o[v + j * Q + i] = V::DIRECT_FP8 ? x[v + 4 * i + j] : x[v + 2 * (j % 2 * Q + i) + j / 2];
    }
    static void decode(typename V::I q, F (&f)[4]) {
        if constexpr (V::DIRECT_FP8) {
            const auto even = V::even_bf16(q), odd = V::odd_bf16(q);
            f[0] = V::bf16_even(even), f[1] = V::bf16_even(odd), f[2] = V::bf16_odd(even), f[3] = V::bf16_odd(odd);
        } else {
            const auto even = V::even_halves(q), odd = V::odd_halves(q);
            f[0] = V::half_low(even), f[1] = V::half_high(even), f[2] = V::half_low(odd), f[3] = V::half_high(odd);
        }
    }
    template <int R, int T>
    static void unit(const uint8_t *const *w, const uint8_t *const *s, const uint8_t *const *x, F (&acc)[R][T]) {
        F part[R][T];
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) part[r][t] = V::zero();
        for (int v = 0; v < 128; v += V::W)
            for (int r = 0; r < R; ++r) {
                F f[4];
                decode(V::load(w[r] + v), f);
                for (int t = 0; t < T; ++t)
                    for (int i = 0; i < 4; ++i)
                        part[r][t] = V::fma(f[i], V::loadf(reinterpret_cast<const float *>(x[t]) + v + i * (V::W / 4)),
                                            part[r][t]);
            }
        constexpr float FACTOR = V::DIRECT_FP8 ? 0x1p120f : 256.0f;
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) acc[r][t] = V::fma(part[r][t], V::set(FACTOR * get_float(s[r])), acc[r][t]);
    }
};

// Inputs as 16-bit integers, one scale per run of `n`: x = scale * q, |q| <= 32639 = 127 * 256 + 127, so that q splits
// into two signed bytes. The error is at most half a step: 2^-16 of the run's largest |x|.
inline float quantise(const float *x, int n, int16_t *q) {
    float largest = 0;
    for (int i = 0; i < n; ++i) largest = std::fmax(largest, std::fabs(x[i]));
    if (!(largest > 0) || !std::isfinite(largest)) {  // zeros, or an input that must spoil the result
        std::memset(q, 0, 2 * static_cast<size_t>(n));
        return largest == 0 ? 0.0f : NAN;
    }
    const float scale = largest / 32639.0f, inverse = 32639.0f / largest;
    for (int i = 0; i < n; ++i) {
        const float v = x[i] * inverse;
        q[i] = static_cast<int16_t>(std::isfinite(inverse) ? v + std::copysign(0.5f, v) : 0.0f);
    }
    return scale;
}

template <class V>
struct DecodeInt8 {
    using F = typename V::F;
    static constexpr int COLUMNS = 64, BYTES = 64, SCALES = 0, INPUT = 192;
    static void prepare(const float *x, uint8_t *out) {  // per vector of W columns: 16-bit inputs, then their scale
        for (int v = 0; v < 64; v += V::W, out += 3 * V::W) {
            int16_t q[V::W];
            const float scale = quantise(x + v, V::W, q);
            std::memcpy(out, q, sizeof q);
            for (int i = 0; i < V::W / 4; ++i) std::memcpy(out + 2 * V::W + 4 * i, &scale, 4);
        }
    }
    template <int R, int T>
    static void unit(const uint8_t *const *w, const uint8_t *const *, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 64; v += V::W)
            for (int r = 0; r < R; ++r) {
                const auto low = V::widen_low(w[r] + v), high = V::widen_high(w[r] + v);
                for (int t = 0; t < T; ++t) {
                    const uint8_t *xv = x[t] + 3 * v;
                    const auto sum = V::add32(V::madd(low, V::load(xv)), V::madd(high, V::load(xv + V::W)));
                    acc[r][t] = V::fma(V::to_float(sum),
                                       V::loadf(reinterpret_cast<const float *>(xv + 2 * V::W)), acc[r][t]);
                }
            }
    }
};

// Scales of the 4-bit formats: bytes of scale per unit of 128 columns, and the scales of the vector at byte v of it.
template <class V>
struct ScaleBf16Per32 {
    static constexpr int BYTES = 8;
    static typename V::F at(const uint8_t *s, int v) { return V::bf16_per_32(s + v / 8); }
};
template <class V>
struct ScaleBf16Per128 {
    static constexpr int BYTES = 2;
    static typename V::F at(const uint8_t *s, int) {
        uint16_t bits;
        std::memcpy(&bits, s, 2);
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        return V::set(get_float(&wide));
    }
};
template <class V>
struct ScaleE8m0 {  // code 0 (2^-127) reads as zero, code 255 (NaN) as infinity
    static constexpr int BYTES = 4;
    static typename V::F at(const uint8_t *s, int v) { return V::e8m0_per_32(s + v / 16); }
};
template <class V>
struct ScaleE4m3 {
    static constexpr int BYTES = 8;
    static typename V::F at(const uint8_t *s, int v) { return V::e4m3_per_16(s + v / 8); }
};

// int4 is stored as value + 8; e2m1 is looked up as 2 * value + 12. Both are unsigned bytes, so the offset times the sum
// of the inputs is taken off again per run of 32. FACTOR brings the look-up and the scale's own factor back.
struct CodeInt4 {
    static constexpr int OFFSET = 8;
    static constexpr bool LOOKUP = false;
    static constexpr uint8_t TABLE[16] = {};
};
struct CodeE2m1 {
    static constexpr int OFFSET = 12;
    static constexpr bool LOOKUP = true;
    static constexpr uint8_t TABLE[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
};

template <class V, class Code, class Scale, int NUMERATOR, int DENOMINATOR>
struct DecodeNibbles {
    using F = typename V::F;
    static constexpr int COLUMNS = 128, BYTES = 64, SCALES = Scale::BYTES, INPUT = 384;
    static void prepare(const float *x, uint8_t *out) {
        for (int v = 0; v < 64; v += V::W, out += 6 * V::W)
            for (int g = 0; g < V::W / 16; ++g) {  // a run of 32 columns is 16 bytes of weights, four lanes of sums
                int16_t q[32];
                const float scale = quantise(x + 2 * v + 32 * g, 32, q) * NUMERATOR / DENOMINATOR;
                int32_t sum = 0;
                for (int i = 0; i < 32; ++i) {
                    const int high = (q[i] + 128) >> 8;
                    uint8_t *o = out + (i & 1) * V::W + 16 * g + i / 2;
                    o[0] = static_cast<uint8_t>(high);
                    o[2 * V::W] = static_cast<uint8_t>(q[i] - 256 * high);
                    sum += q[i];
                }
                for (int i = 0; i < 4; ++i) {
                    const int32_t correction = i ? 0 : -Code::OFFSET * sum;
                    std::memcpy(out + 4 * V::W + 16 * g + 4 * i, &correction, 4);
                    std::memcpy(out + 5 * V::W + 16 * g + 4 * i, &scale, 4);
                }
            }
    }
    template <int R, int T>
    static void unit(const uint8_t *const *w, const uint8_t *const *s, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 64; v += V::W)
            for (int r = 0; r < R; ++r) {
                const auto q = V::load(w[r] + v);
                auto even = V::low_nibbles(q), odd = V::high_nibbles(q);
                if (Code::LOOKUP) {
                    const auto table = V::table(Code::TABLE);
                    even = V::lookup(table, even);
                    odd = V::lookup(table, odd);
                }
                const F scale = Scale::at(s[r], v);
                for (int t = 0; t < T; ++t) {
                    const uint8_t *xv = x[t] + 6 * v;
                    const auto dot = V::dot(even, odd, V::load(xv), V::load(xv + V::W), V::load(xv + 2 * V::W),
                                            V::load(xv + 3 * V::W));
                    const F sum = V::to_float(V::add32(dot, V::load(xv + 4 * V::W)));
                    const F both = V::mul(scale, V::loadf(reinterpret_cast<const float *>(xv + 5 * V::W)));
                    acc[r][t] = V::fma(sum, both, acc[r][t]);
                }
            }
    }
};

}  // namespace
}  // namespace moegauge
