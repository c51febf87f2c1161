// 16-byte vector operations in plain C++ loops, for machines without the others.
// Little-endian.
#pragma once
#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

struct Plain {
    static constexpr int W = 16;
    static constexpr int REGISTERS = 16;
    static constexpr int STRIPS = 2;  // side by side (products_4bit.h)
    static constexpr const char *name = "plain C++";
    struct I {
        uint8_t b[16];
    };
    struct F {
        float f[4];
    };

    static I load(const void *p) { return bits<I>(p); }
    static F loadf(const float *p) { return bits<F>(p); }
    static void storef(float *p, F v) { std::memcpy(p, &v, sizeof v); }
    static F zero() { return set(0); }
    static F set(float x) { return {{x, x, x, x}}; }
    static F fma(F a, F b, F c) { return each([&](int i) { return a.f[i] * b.f[i] + c.f[i]; }); }
    static F mul(F a, F b) { return each([&](int i) { return a.f[i] * b.f[i]; }); }
    static F add(F a, F b) { return each([&](int i) { return a.f[i] + b.f[i]; }); }
    static float sum(F v) { return (v.f[0] + v.f[1]) + (v.f[2] + v.f[3]); }
    static void sum4(F a, F b, F c, F d, float *out) {
        out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
    }
    static I xor_(I a, I b) { return bytes([&](int i) { return a.b[i] ^ b.b[i]; }); }
    static uint64_t fold(I v) { return bits<uint64_t>(v.b) ^ bits<uint64_t>(v.b + 8); }

    static I low_nibbles(I w) { return bytes([&](int i) { return w.b[i] & 15; }); }
    static I high_nibbles(I w) { return bytes([&](int i) { return w.b[i] >> 4; }); }
    static I table(const uint8_t *sixteen) { return load(sixteen); }
    static I lookup_low(I table, I w) { return bytes([&](int i) { return table.b[w.b[i] & 15]; }); }
    static I lookup_high(I table, I w) { return bytes([&](int i) { return table.b[w.b[i] >> 4]; }); }
    using Sum = I;  // see vector_avx2.h
    static Sum first(I weights, I inputs, I start) { return more(start, weights, inputs); }
    static Sum more(Sum sum, I weights, I inputs) {
        return words([&](int i) {
            uint32_t total = word(sum, i);
            for (int j = 4 * i; j < 4 * i + 4; ++j) total += static_cast<uint32_t>(weights.b[j] * s8(inputs.b[j]));
            return total;
        });
    }
    static void settle(Sum &) {}
    static I total(Sum high, Sum low, I) { return words([&](int i) { return word(high, i) * 128 + word(low, i); }); }
    static I spread(const void *four_bytes) { return words([&](int) { return bits<uint32_t>(four_bytes); }); }
    static I add32(I a, I b) { return words([&](int i) { return word(a, i) + word(b, i); }); }
    static F to_float(I v) { return each([&](int i) { return static_cast<float>(static_cast<int32_t>(word(v, i))); }); }

    static I widen_low(const void *p) {
        const int8_t *s = static_cast<const int8_t *>(p);
        I out;
        for (int i = 0; i < 8; ++i) {
            const int16_t v = s[i];
            std::memcpy(out.b + 2 * i, &v, 2);
        }
        return out;
    }
    static I widen_high(const void *p) { return widen_low(static_cast<const uint8_t *>(p) + 8); }
    static I madd(I a, I b) {
        return words([&](int i) {
            return static_cast<uint32_t>(bits<int16_t>(a.b + 4 * i) * bits<int16_t>(b.b + 4 * i) +
                                         bits<int16_t>(a.b + 4 * i + 2) * bits<int16_t>(b.b + 4 * i + 2));
        });
    }

    static I even_halves(I w) { return halves([&](int i) { return half_of(w.b[2 * i]); }); }
    static I odd_halves(I w) { return halves([&](int i) { return half_of(w.b[2 * i + 1]); }); }
    static F half_low(I h) { return each([&](int i) { return half(bits<uint16_t>(h.b + 2 * i)); }); }
    static F half_high(I h) { return each([&](int i) { return half(bits<uint16_t>(h.b + 8 + 2 * i)); }); }

    static constexpr bool DIRECT_FP8 = false;
    static F bf16_even(I w) { return each([&](int i) { return as_float(word(w, i) << 16); }); }
    static F bf16_odd(I w) { return each([&](int i) { return as_float(word(w, i) & 0xFFFF0000u); }); }

    static F scales_e8m0(const uint8_t *s) {  // code 0 is 2^-127, subnormal
        return each([&](int i) { return as_float(s[i] ? static_cast<uint32_t>(s[i]) << 23 : 0x00400000u); });
    }
    static F scales_bf16(const uint8_t *s) {
        return each([&](int i) { return as_float(static_cast<uint32_t>(bits<uint16_t>(s + 2 * i)) << 16); });
    }
    static F scales_e4m3(const uint8_t *s) {  // divided by 2^120
        return each([&](int i) { return as_float(static_cast<uint32_t>(s[i] & 128) << 24 | static_cast<uint32_t>(s[i] & 127) << 20); });
    }

  private:
    template <class T>
    static T bits(const void *p) {
        T out;
        std::memcpy(&out, p, sizeof out);
        return out;
    }
    static float as_float(uint32_t v) { return bits<float>(&v); }
    static uint32_t word(I v, int i) { return bits<uint32_t>(v.b + 4 * i); }
    static int s8(uint8_t v) { return static_cast<int8_t>(v); }
    static uint16_t half_of(uint8_t e4m3) { return static_cast<uint16_t>((e4m3 & 0x80) << 8 | (e4m3 & 0x7F) << 7); }
    // Exact while |value| < 2: what half_of makes (exponents 0 to 15).
    static float half(uint16_t h) {
        return as_float(static_cast<uint32_t>(h & 0x8000) << 16 | static_cast<uint32_t>(h & 0x7FFF) << 13) * 0x1p112f;
    }
    template <class Fn>
    static F each(Fn fn) {
        F out;
        for (int i = 0; i < 4; ++i) out.f[i] = fn(i);
        return out;
    }
    template <class Fn>
    static I bytes(Fn fn) {
        I out;
        for (int i = 0; i < 16; ++i) out.b[i] = static_cast<uint8_t>(fn(i));
        return out;
    }
    template <class Fn>
    static I halves(Fn fn) {
        I out;
        for (int i = 0; i < 8; ++i) {
            const uint16_t v = fn(i);
            std::memcpy(out.b + 2 * i, &v, 2);
        }
        return out;
    }
    template <class Fn>
    static I words(Fn fn) {
        I out;
        for (int i = 0; i < 4; ++i) {
            const uint32_t v = fn(i);
            std::memcpy(out.b + 4 * i, &v, 4);
        }
        return out;
    }
};

}  // namespace
}  // namespace moegauge
