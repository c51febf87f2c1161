// Weighted sums of KV cache rows on the CPU: out[h] += sum over t of p[h][t] * row t.
// Sums of a few heads and columns stay in registers while the tokens go by.
#pragma once
#include <cstdint>
#include <cstring>

#include "core.h"

namespace moegauge {
namespace {

template <class V, Element ELEMENT>
struct Mix {
    using F = typename V::F;
    static constexpr int LANES = V::W / 4;
    static constexpr int BYTES = ELEMENT == Element::BF16 ? 2 : 1;
    static constexpr int PARTS = 4 / BYTES;          // float vectors one vector of the cache becomes
    static constexpr int STEP = V::W / BYTES;        // its columns
    static constexpr int HEADS = V::REGISTERS >= 32 ? 4 : 2;
    static constexpr int64_t AHEAD = 4096;             // bytes; the first heads read memory, the others a cache

    // Columns i of part j: the order decode() leaves them in.
    static int column(int j, int i) { return ELEMENT == Element::BF16 ? 2 * i + j : 2 * (j % 2 * LANES + i) + j / 2; }

    static void decode(const uint8_t *p, F (&f)[PARTS]) {
        const auto q = V::load(p);
        if constexpr (ELEMENT == Element::BF16) {
            f[0] = V::bf16_even(q);
            f[1] = V::bf16_odd(q);
        } else {  // as float16, divided by 256
            const auto even = V::even_halves(q), odd = V::odd_halves(q);
            f[0] = V::half_low(even), f[1] = V::half_high(even), f[2] = V::half_low(odd), f[3] = V::half_high(odd);
        }
    }

    // H heads, N vectors of the cache starting at column `c`.
    template <int H, int N>
    static void block(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t c, const float *const *p,
                      float *const *out) {
        F acc[H][N][PARTS];
        for (auto &head : acc)
            for (auto &part : head)
                for (F &a : part) a = V::zero();
        const uint8_t *row = rows + c * BYTES;
        for (int64_t t = 0; t < count; ++t, row += row_bytes) {
            for (int n = 0; n < N; ++n) __builtin_prefetch(row + n * V::W + AHEAD, 0, 3);
            F f[N][PARTS];
            for (int n = 0; n < N; ++n) decode(row + n * V::W, f[n]);
            for (int h = 0; h < H; ++h) {
                const F share = V::set(p[h][t]);
                for (int n = 0; n < N; ++n)
                    for (int j = 0; j < PARTS; ++j) acc[h][n][j] = V::fma(share, f[n][j], acc[h][n][j]);
            }
        }
        for (int h = 0; h < H; ++h)
            for (int n = 0; n < N; ++n)
                for (int j = 0; j < PARTS; ++j) {
                    float lanes[LANES];
                    V::storef(lanes, ELEMENT == Element::BF16 ? acc[h][n][j] : V::mul(acc[h][n][j], V::set(256)));
                    for (int i = 0; i < LANES; ++i) out[h][c + n * STEP + column(j, i)] += lanes[i];
                }
    }

    template <int H>
    static void some(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t width, const float *const *p,
                     float *const *out) {
        constexpr int N = ELEMENT == Element::BF16 ? 2 : 1;
        int64_t c = 0;
        for (; c + N * STEP <= width; c += N * STEP) block<H, N>(rows, row_bytes, count, c, p, out);
        if constexpr (N > 1)
            for (; c + STEP <= width; c += STEP) block<H, 1>(rows, row_bytes, count, c, p, out);
        if (c == width) return;
        for (int64_t t = 0; t < count; ++t) {  // the row's end through a padded copy
            uint8_t last[V::W] = {};
            std::memcpy(last, rows + t * row_bytes + c * BYTES, static_cast<size_t>((width - c) * BYTES));
            for (int h = 0; h < H; ++h) {
                float sums[STEP] = {};
                float *o = sums;
                const float *share = p[h] + t;
                block<1, 1>(last, 0, 1, 0, &share, &o);
                for (int64_t i = c; i < width; ++i) out[h][i] += sums[i - c];
            }
        }
    }

    static void rows(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t width, const float *const *p,
                     float *const *out, int64_t heads) {
        int64_t h = 0;
        for (; h + HEADS <= heads; h += HEADS) some<HEADS>(rows, row_bytes, count, width, p + h, out + h);
        for (; h < heads; ++h) some<1>(rows, row_bytes, count, width, p + h, out + h);
    }
};

}  // namespace
}  // namespace moegauge
