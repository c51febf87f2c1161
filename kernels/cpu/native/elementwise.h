// Norms, activation functions and sums of rows on the CPU, as plain loops the compiler vectorises.
// They run between the products, when memory idles, so their microseconds count.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace moegauge {
namespace {

inline float bits_to_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline float bf16_at(const uint8_t *p, int64_t i) {
    uint16_t half;
    std::memcpy(&half, p + 2 * i, 2);
    return bits_to_float(static_cast<uint32_t>(half) << 16);
}

inline float f32_at(const uint8_t *p, int64_t i) {
    float f;
    std::memcpy(&f, p + 4 * i, 4);
    return f;
}

// e^x within 3 units in the last place: 2^n times a polynomial on |r| <= ln 2 / 2, with the coefficients of Cephes' expf.
// Below -87 it stays at 2^-126 or so, above 88.7 it is infinite; NaN stays NaN.
inline float exponential(float x) {
    const float bounded = x < -87.0f ? -87.0f : x > 89.0f ? 89.0f : x;  // NaN passes both
    const float k = bounded * 1.44269504f + 12582912.0f;                // rounded to an integer in its low bits
    uint32_t k_bits;
    std::memcpy(&k_bits, &k, 4);
    const float n = k - 12582912.0f;
    const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // 2^n in two factors: n reaches 128, which no exponent holds.
    const int32_t whole = static_cast<int32_t>(k_bits - 0x4B400000u), half = whole >> 1, rest = whole - half;
    return p * bits_to_float(static_cast<uint32_t>(half + 127) << 23) * bits_to_float(static_cast<uint32_t>(rest + 127) << 23);
}

inline void norm(const float *x, int64_t n, const uint8_t *gain, int64_t is_f32, float *out) {
    double lanes[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; ++l) lanes[l] += static_cast<double>(x[i + l]) * x[i + l];
    double square = 0;
    for (; i < n; ++i) square += static_cast<double>(x[i]) * x[i];
    for (double lane : lanes) square += lane;
    const float scale = static_cast<float>(1 / std::sqrt(square / static_cast<double>(n) + 1e-6));
    if (is_f32)
        for (i = 0; i < n; ++i) out[i] = x[i] * scale * f32_at(gain, i);
    else
        for (i = 0; i < n; ++i) out[i] = x[i] * scale * bf16_at(gain, i);
}

inline void gate(const float *gate, const float *up, int64_t n, float *y) {
    if (up)
        for (int64_t i = 0; i < n; ++i) y[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    else
        for (int64_t i = 0; i < n; ++i) y[i] = gate[i] / (1.0f + exponential(-gate[i]));
}

// s = e^(s - most), most = the largest s; returns their sum, of sixteen partial sums.
inline float exponentials(float *s, int64_t n, float *most_out) {
    float lanes[16];
    for (float &lane : lanes) lane = s[0];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; ++l) lanes[l] = s[i + l] > lanes[l] ? s[i + l] : lanes[l];
    float most = s[0];
    for (; i < n; ++i) most = s[i] > most ? s[i] : most;
    for (float &lane : lanes) {
        most = lane > most ? lane : most;
        lane = 0;
    }
    *most_out = most;
    i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; ++l) lanes[l] += s[i + l] = exponential(s[i + l] - most);
    float sum = 0;
    for (; i < n; ++i) sum += s[i] = exponential(s[i] - most);
    for (float lane : lanes) sum += lane;
    return sum;
}

inline void add(const uint8_t *x, int64_t is_f32, float factor, int64_t n, float *y) {
    if (is_f32)
        for (int64_t i = 0; i < n; ++i) y[i] += factor * f32_at(x, i);
    else
        for (int64_t i = 0; i < n; ++i) y[i] += factor * bf16_at(x, i);
}

}  // namespace
}  // namespace moegauge
