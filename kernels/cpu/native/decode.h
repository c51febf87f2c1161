// Unpack and multiply 8-bit and wider weights on the CPU: one struct per type of element and of scale.
// V is an instruction set's vector type.
// A unit is the run of weights handled at once; its prepared input lies in the order the unit's vectors want, padded
// with zeros to whole units. unit<R, T, STRIDE> adds R rows times T inputs of one unit to acc; a row's pieces of 64
// bytes lie STRIDE bytes apart.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "formats.h"

namespace moegauge {
namespace {

inline float get_float(const void *p) {
    float f;
    std::memcpy(&f, p, 4);
    return f;
}

constexpr int PIECE = 64;  // bytes of a row that lie together (products.h)

template <int STRIDE>
constexpr int64_t piece(int64_t byte) {
    return byte / PIECE * STRIDE + byte % PIECE;
}

// COLUMNS of a unit take BYTES, their scales SCALES bytes, their prepared input INPUT bytes. GROUPED: a group's sums are
// kept beside the row's until its scale is due. FACTOR: what a row's sum is still to be multiplied by.
template <class V, Element ELEMENT, Scale SCALE>
struct Decode;

template <class V>
struct Decode<V, Element::F32, Scale::NONE> {
    using F = typename V::F;
    static constexpr int COLUMNS = 16, BYTES = 64, SCALES = 0, INPUT = 64;
    static constexpr bool GROUPED = false;
    static constexpr float FACTOR = 1;
    static void prepare(const float *x, uint8_t *out) { std::memcpy(out, x, 64); }
    template <int R, int T, int STRIDE>
    static void unit(const uint8_t *const *w, const uint8_t *const *, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 64; v += V::W)
            for (int r = 0; r < R; ++r)
                for (int t = 0; t < T; ++t)
                    acc[r][t] = V::fma(V::loadf(reinterpret_cast<const float *>(w[r] + piece<STRIDE>(v))),
                                       V::loadf(reinterpret_cast<const float *>(x[t] + v)), acc[r][t]);
    }
};

// A 32-bit lane holds two weights; each becomes a float32 by a shift or a mask.
template <class V>
struct Decode<V, Element::BF16, Scale::NONE> {
    using F = typename V::F;
    static constexpr int COLUMNS = 32, BYTES = 64, SCALES = 0, INPUT = 128;
    static constexpr bool GROUPED = false;
    static constexpr float FACTOR = 1;
    static void prepare(const float *x, uint8_t *out) {  // per vector: even columns, then odd ones
        float *o = reinterpret_cast<float *>(out);
        for (int v = 0; v < 32; v += V::W / 2)
            for (int i = 0; i < V::W / 4; ++i) {
                o[v + i] = x[v + 2 * i];
                o[v + V::W / 4 + i] = x[v + 2 * i + 1];
            }
    }
    template <int R, int T, int STRIDE>
    static void unit(const uint8_t *const *w, const uint8_t *const *, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 64; v += V::W)
            for (int r = 0; r < R; ++r) {
                const auto q = V::load(w[r] + piece<STRIDE>(v));
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
// become subnormal float32, which some CPUs multiply slowly (products.h), and Zen 4 in a multiplication alone: 4 cycles more,
// where a multiply-add takes none. Half of what takes codes to their numbers is in the prepared input, half in
// the row's sum: inputs may reach 2^67, sums fall to 2^-66. The NaN codes 0x7F and 0xFF read as +-480; packed weights
// never hold them (see packing.py).
template <class V>
struct Decode<V, Element::E4M3, Scale::F32> {
    using F = typename V::F;
    static constexpr int COLUMNS = 128, BYTES = 128, SCALES = 4, INPUT = 512;
    static constexpr bool GROUPED = true;
    static constexpr float FACTOR = V::DIRECT_FP8 ? 0x1p60f : 16.0f;  // of 2^120, or 256
    static void prepare(const float *x, uint8_t *out) {  // per vector: in the order decode() returns
        constexpr int Q = V::W / 4;
        float *o = reinterpret_cast<float *>(out);
        for (int v = 0; v < 128; v += V::W)
            for (int j = 0; j < 4; ++j)
                for (int i = 0; i < Q; ++i) o[v + j * Q + i] = x[v + column(j, i)] * FACTOR;
    }
    static constexpr int column(int j, int i) {
        if constexpr (V::DIRECT_FP8) return V::e4m3_column(j, i);
        return 2 * (j % 2 * (V::W / 4) + i) + j / 2;
    }
    static void decode(typename V::I q, F (&f)[4]) {
        if constexpr (V::DIRECT_FP8) {
            V::e4m3_direct(q, f);
        } else {
            const auto even = V::even_halves(q), odd = V::odd_halves(q);
            f[0] = V::half_low(even), f[1] = V::half_high(even), f[2] = V::half_low(odd), f[3] = V::half_high(odd);
        }
    }
    template <int R, int T, int STRIDE>
    static void unit(const uint8_t *const *w, const uint8_t *const *s, const uint8_t *const *x, F (&acc)[R][T]) {
        constexpr int CHAINS = T == 1 ? 2 : 1;  // alone, the latency of four dependent additions a vector would show
        F part[R][T][CHAINS];
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t)
                for (F &chain : part[r][t]) chain = V::zero();
        for (int v = 0; v < 128; v += V::W)
            for (int r = 0; r < R; ++r) {
                F f[4];
                decode(V::load(w[r] + piece<STRIDE>(v)), f);
                for (int t = 0; t < T; ++t)
                    for (int i = 0; i < 4; ++i)
                        part[r][t][i % CHAINS] = V::fma(f[i], V::loadf(reinterpret_cast<const float *>(x[t]) + v + i * (V::W / 4)),
                                                        part[r][t][i % CHAINS]);
            }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) {
                const F sum = CHAINS == 1 ? part[r][t][0] : V::add(part[r][t][0], part[r][t][CHAINS - 1]);
                acc[r][t] = V::fma(sum, V::set(get_float(s[r])), acc[r][t]);
            }
    }
};

// Every e8m0 code times a factor, infinite past float32: one load, where shifting and comparing take eight instructions.
struct PowersOfTwo {
    float of[256];
    constexpr explicit PowersOfTwo(float factor) : of() {
        float power = 0x1p-126f * factor / 2;
        for (float &value : of) {
            value = power;
            power = power < 0x1p127f ? 2 * power : __builtin_inff();
        }
    }
};

// e4m3 with a power of two for every 32 columns (MXFP8): codes, their order and the inputs are those above; the other half
// of the factor is in the scales.
template <class V>
struct Decode<V, Element::E4M3, Scale::E8M0> : Decode<V, Element::E4M3, Scale::F32> {
    using F = typename V::F;
    static constexpr PowersOfTwo SCALE{Decode<V, Element::E4M3, Scale::F32>::FACTOR};
    static constexpr float FACTOR = 1;
    template <int R, int T, int STRIDE>
    static void unit(const uint8_t *const *w, const uint8_t *const *s, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 128; v += V::W)
            for (int r = 0; r < R; ++r) {
                F f[4];
                Decode::decode(V::load(w[r] + piece<STRIDE>(v)), f);
                const float one = SCALE.of[s[r][v / 32]], two = SCALE.of[s[r][V::W > 32 ? v / 32 + 1 : v / 32]];
                F lanes;  // a vector of 64 bytes holds two groups, the second in its last eight lanes
                if constexpr (V::W > 32) lanes = V::halves(one, two);
                else lanes = V::set(one);
                for (int t = 0; t < T; ++t) {
                    const float *xv = reinterpret_cast<const float *>(x[t]) + v;
                    const auto input = [&](int i) { return V::loadf(xv + i * (V::W / 4)); };
                    if constexpr (V::W > 32 && !V::DIRECT_FP8) {  // f[0] and f[2] are the first group, f[1] and f[3] the second
                        acc[r][t] = V::fma(V::fma(f[2], input(2), V::mul(f[0], input(0))), V::set(one), acc[r][t]);
                        acc[r][t] = V::fma(V::fma(f[3], input(3), V::mul(f[1], input(1))), V::set(two), acc[r][t]);
                    } else {
                        const F half = V::fma(f[1], input(1), V::fma(f[0], input(0), V::zero()));  // f[0] may be subnormal
                        acc[r][t] = V::fma(V::fma(f[3], input(3), V::fma(f[2], input(2), half)), lanes, acc[r][t]);
                    }
                }
            }
    }
};

// Inputs as integers, one scale per run of N: x = scale * q, |q| <= steps. The error is at most half a step. A run with a
// NaN or an infinity has a NaN for its scale, and then the result is NaN too. Written as plain loops over the bits of x,
// which compilers turn into vectors; std::fmax and std::copysign they do not, and inputs are prepared between products,
// when memory idles: 17 us per operation of 2,880 columns before, 2 us now.
template <int N>
inline float quantise(const float *x, int steps, int16_t *q) {
    uint32_t bits[N], largest_bits = 0;
    std::memcpy(bits, x, sizeof bits);
    for (int i = 0; i < N; ++i) {
        const uint32_t size = bits[i] & 0x7FFFFFFFu;
        largest_bits = size > largest_bits ? size : largest_bits;
    }
    float largest;
    std::memcpy(&largest, &largest_bits, 4);
    const float inverse = static_cast<float>(steps) / largest;
    if (!(largest_bits < 0x7F800000u && inverse < 3.4e38f)) {  // NaN or infinite; or 0, or subnormal
        std::memset(q, 0, 2 * N);
        return largest_bits < 0x7F800000u ? largest / static_cast<float>(steps) : largest - largest;
    }
    for (int i = 0; i < N; ++i) {
        const uint32_t half_bits = 0x3F000000u | (bits[i] & 0x80000000u);
        float half;
        std::memcpy(&half, &half_bits, 4);
        q[i] = static_cast<int16_t>(static_cast<int32_t>(x[i] * inverse + half));
    }
    return largest / static_cast<float>(steps);
}

template <class V>
struct Decode<V, Element::INT8, Scale::F32> {  // the scale is the row's: products.h
    using F = typename V::F;
    static constexpr int COLUMNS = 64, BYTES = 64, SCALES = 0, INPUT = 192;
    static constexpr bool GROUPED = false;
    static constexpr float FACTOR = 1;
    static void prepare(const float *x, uint8_t *out) {  // per vector of W columns: 16-bit inputs, then their scale
        for (int v = 0; v < 64; v += V::W, out += 3 * V::W) {
            int16_t q[V::W];
            const float scale = quantise<V::W>(x + v, 32767, q);
            std::memcpy(out, q, sizeof q);
            for (int i = 0; i < V::W / 4; ++i) std::memcpy(out + 2 * V::W + 4 * i, &scale, 4);
        }
    }
    template <int R, int T, int STRIDE>
    static void unit(const uint8_t *const *w, const uint8_t *const *, const uint8_t *const *x, F (&acc)[R][T]) {
        for (int v = 0; v < 64; v += V::W)
            for (int r = 0; r < R; ++r) {
                const uint8_t *wv = w[r] + piece<STRIDE>(v);
                const auto low = V::widen_low(wv), high = V::widen_high(wv);
                for (int t = 0; t < T; ++t) {
                    const uint8_t *xv = x[t] + 3 * v;
                    const auto sum = V::add32(V::madd(low, V::load(xv)), V::madd(high, V::load(xv + V::W)));
                    acc[r][t] = V::fma(V::to_float(sum),
                                       V::loadf(reinterpret_cast<const float *>(xv + 2 * V::W)), acc[r][t]);
                }
            }
    }
};

}  // namespace
}  // namespace moegauge
