// Products with 4-bit weights on interleaved rows: integer sums, then group scales (E8M0, E4M3, bfloat16).
// Rows lie in strips of as many rows as a vector has 32-bit lanes: four bytes (eight columns) of each row in turn, so
// that a lane always belongs to one row, and its products are summed as integers over a whole run of columns before a
// scale is needed. Scales lie likewise, one of each row of the strip in turn. Rows that fill no strip, and matrices
// whose columns are no multiple of eight, stay in the canonical order.
#pragma once
#include <cstdint>
#include <cstring>

#include "core.h"
#include "decode.h"

namespace moegauge {
namespace {

// int4 is stored as value + 8; e2m1 is looked up as 2 * value + 12. Both are unsigned bytes; OFFSET times the sum of the
// inputs is taken off again per run of columns.
constexpr uint8_t E2M1_TABLE[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <class V, int64_t FORMAT>
struct Strips {
    using I = typename V::I;
    using F = typename V::F;
    static constexpr Traits TRAIT = TRAITS[FORMAT];
    static constexpr bool IS_INT = TRAIT.element == Element::INT4;
    static constexpr int LANES = V::W / 4;
    static constexpr int RUN = TRAIT.columns < 32 ? TRAIT.columns : 32;  // columns that share an input scale and a weight scale
    static constexpr int SPAN = TRAIT.columns;  // columns that share a weight scale
    static constexpr int SCALE = TRAIT.scale_bytes();
    static constexpr int OFFSET = IS_INT ? 8 : 12;
    // Inputs are integers of at most 8127 = 63 * 128 + 63, held as 128 h + l with |h|, |l| <= 64: half a step is 2^-14 of
    // the run's largest. Per eight columns: h of the even ones, h of the odd ones, l likewise; then the run's
    // -OFFSET * sum and its scale, with e2m1's factor 2 taken back.
    static constexpr int STEPS = 8127;
    static constexpr int INPUT = 2 * RUN + 8;

    static size_t prepared_bytes(int64_t columns) { return static_cast<size_t>((columns + RUN - 1) / RUN) * INPUT; }

    static void prepare(const float *x, int64_t columns, uint8_t *out) {
        for (int64_t c = 0; c < columns; c += RUN, out += INPUT) {
            float run[RUN] = {};
            int16_t q[RUN];
            std::memcpy(run, x + c, static_cast<size_t>(columns - c < RUN ? columns - c : RUN) * 4);
            const float scale = quantise<RUN>(run, STEPS, q) * (IS_INT ? 1.0f : 0.5f);
            int32_t sum = 0;
            uint8_t high[RUN], low[RUN];
            for (int i = 0; i < RUN; ++i) {
                high[i] = static_cast<uint8_t>((q[i] + 64) >> 7);
                low[i] = static_cast<uint8_t>(q[i] - ((q[i] + 64) & ~127));
                sum += q[i];
            }
            for (int i = 0; i < RUN; i += 8) {
                store_parted(high + i, out + 2 * i);
                store_parted(low + i, out + 2 * i + 8);
            }
            sum *= -OFFSET;
            std::memcpy(out + 2 * RUN, &sum, 4);
            std::memcpy(out + 2 * RUN + 4, &scale, 4);
        }
    }

    // Eight bytes, the even ones before the odd ones.
    static void store_parted(const uint8_t *bytes, uint8_t *out) {
        uint64_t all;
        std::memcpy(&all, bytes, 8);
        const auto even = [](uint64_t v) {
            v &= 0x00FF00FF00FF00FFu;
            v = (v | v >> 8) & 0x0000FFFF0000FFFFu;
            return (v | v >> 16) & 0xFFFFFFFFu;
        };
        all = even(all) | even(all >> 8) << 32;
        std::memcpy(out, &all, 8);
    }

    static F scales(const uint8_t *s) {
        if constexpr (TRAIT.scale == Scale::BF16) return V::scales_bf16(s);
        if constexpr (TRAIT.scale == Scale::E8M0) return V::scales_e8m0(s);
        if constexpr (TRAIT.scale == Scale::E4M3) return V::mul(V::scales_e4m3(s), V::set(0x1p120f));
    }

    // One run of S strips times T inputs, `chunks` times eight columns of it.
    template <int S, int T>
    static inline __attribute__((always_inline)) void run(const uint8_t *const *w, const uint8_t *const *s,
                                                          const uint8_t *const *x, int chunks, F (&acc)[S][T]) {
        typename V::Sum high[S][T] = {}, low[S][T] = {};
        I start[T];
        for (int t = 0; t < T; ++t) start[t] = V::spread(x[t] + 2 * RUN);
        const I table = V::table(E2M1_TABLE);
#pragma GCC unroll 4
        for (int c = 0; c < chunks; ++c)
            for (int i = 0; i < S; ++i) {
                const I q = V::load(w[i] + c * V::W);
                const I even = IS_INT ? V::low_nibbles(q) : V::lookup_low(table, q);
                const I odd = IS_INT ? V::high_nibbles(q) : V::lookup_high(table, q);
                for (int t = 0; t < T; ++t) {
                    const uint8_t *xc = x[t] + 16 * c;
                    high[i][t] = c ? V::more(high[i][t], even, V::spread(xc)) : V::first(even, V::spread(xc), I{});
                    high[i][t] = V::more(high[i][t], odd, V::spread(xc + 4));
                    low[i][t] = c ? V::more(low[i][t], even, V::spread(xc + 8)) : V::first(even, V::spread(xc + 8), start[t]);
                    low[i][t] = V::more(low[i][t], odd, V::spread(xc + 12));
                    V::settle(high[i][t]);
                    V::settle(low[i][t]);
                }
            }
        for (int i = 0; i < S; ++i) {
            const F scale = scales(s[i]);
            for (int t = 0; t < T; ++t) {
                const F sum = V::to_float(V::total(high[i][t], low[i][t], start[t]));
                acc[i][t] = V::fma(sum, V::mul(scale, V::set(get_float(x[t] + 2 * RUN + 4))), acc[i][t]);
            }
        }
    }

    // S strips starting at rows row[...] times T inputs; outputs of rows outside [first, last) are dropped.
    template <int S, int T>
    static void tile(const Matrix &m, const int64_t *row, int64_t first, int64_t last, const void *const *x,
                     float *const *y, int64_t ahead) {
        // Where my strips begin: weights w, scales s, prepared inputs xs.
        const int64_t wide = m.columns / 2, scale_wide = (m.columns + SPAN - 1) / SPAN * SCALE;
        const uint8_t *w[S], *s[S], *xs[T];
        F acc[S][T];
        for (int i = 0; i < S; ++i) {
            w[i] = m.weights + row[i] * wide;
            s[i] = m.scales + row[i] * scale_wide;
        }
        for (int t = 0; t < T; ++t) xs[t] = static_cast<const uint8_t *>(x[t]);
        for (int i = 0; i < S; ++i)
            for (int t = 0; t < T; ++t) acc[i][t] = V::zero();
        // Stream and multiply, a run of columns at a time; acc: S x T vectors, a lane per row.
        constexpr int BYTES = RUN / 8 * V::W;
        for (int64_t c = 0; c + RUN <= m.columns; c += RUN) {
            for (int i = 0; i < S; ++i)
                for (int b = 0; b < BYTES; b += 64) __builtin_prefetch(w[i] + ahead + b, 0, 3);
            // Scales are an eighth of the bytes at most: a line of them lasts eight runs, so 256 bytes are far enough.
            for (int i = 0; i < S; ++i) __builtin_prefetch(s[i] + 256, 0, 3);
            run<S, T>(w, s, xs, RUN / 8, acc);
            const bool next = SPAN == RUN || (c + RUN) % SPAN == 0;
            for (int i = 0; i < S; ++i) {
                w[i] += BYTES;
                if (next) s[i] += LANES * SCALE;
            }
            for (int t = 0; t < T; ++t) xs[t] += INPUT;
        }
        if (m.columns % RUN) run<S, T>(w, s, xs, static_cast<int>(m.columns % RUN / 8), acc);
        // Epilogue: the matrix's own scale; a strip's rows go to y[t][row] at once.
        const float factor = TRAIT.tensor_scale ? *m.tensor_scale : 1.0f;
        for (int i = 0; i < S; ++i)
            for (int t = 0; t < T; ++t) {
                if (row[i] >= first && row[i] + LANES <= last) {
                    V::storef(y[t] + row[i], V::mul(acc[i][t], V::set(factor)));
                    continue;
                }
                float sums[LANES];
                V::storef(sums, acc[i][t]);
                for (int r = 0; r < LANES; ++r)
                    if (row[i] + r >= first && row[i] + r < last) y[t][row[i] + r] = sums[r] * factor;
            }
    }

    // A row in the canonical order, with plain integer arithmetic.
    static float canonical(const Matrix &m, int64_t row, const uint8_t *x) {
        const uint8_t *w = m.weights + row * ((m.columns + 1) / 2);
        const uint8_t *s = m.scales + row * ((m.columns + SPAN - 1) / SPAN * SCALE);
        float sum = 0;
        for (int64_t c = 0; c < m.columns; c += RUN, x += INPUT) {
            int64_t total = 0;
            for (int64_t i = 0; i < RUN && c + i < m.columns; ++i) {
                const uint8_t *o = x + i / 8 * 16 + i % 2 * 4 + i % 8 / 2;
                const int code = w[(c + i) / 2] >> ((c + i) % 2 * 4) & 15;
                total += (IS_INT ? code - 8 : E2M1_TABLE[code] - 12) * (128 * static_cast<int8_t>(o[0]) + static_cast<int8_t>(o[8]));
            }
            uint8_t lanes[LANES * SCALE] = {};
            float scale[LANES];
            std::memcpy(lanes, s + c / SPAN * SCALE, SCALE);
            V::storef(scale, scales(lanes));
            sum += static_cast<float>(total) * scale[0] * get_float(x + 2 * RUN + 4);
        }
        return TRAIT.tensor_scale ? sum * *m.tensor_scale : sum;
    }

    // All whole strips of the range times T inputs, S of them side by side.
    template <int S, int T>
    static void pass(const Matrix &m, int64_t first, int64_t last, int64_t begin, int64_t end, const void *const *x,
                     float *const *y, int64_t ahead) {
        const int64_t part = (end - begin) / S;
        for (int64_t strip = begin; strip < begin + part; ++strip) {  // S streams, equal parts of the range
            int64_t row[S];
            for (int i = 0; i < S; ++i) row[i] = (strip + i * part) * LANES;
            tile<S, T>(m, row, first, last, x, y, ahead / S);
        }
        for (int64_t strip = begin + S * part; strip < end; ++strip) {
            const int64_t row[1] = {strip * LANES};
            tile<1, T>(m, row, first, last, x, y, ahead);
        }
    }

    static void rows(const Matrix &m, int64_t first, int64_t last, const void *const *x, int64_t n, float *const *y,
                     int64_t ahead) {
        const int64_t in_strips = m.interleaved ? m.rows / LANES * LANES : 0;
        const int64_t begin = first / LANES, end = (last < in_strips ? last + LANES - 1 : in_strips) / LANES;
        int64_t t = 0;
        if (end > begin) {  // inputs four at a time, as in products.h; several leave registers for one strip
            for (; t + 4 <= n; t += 4) pass<1, 4>(m, first, last, begin, end, x + t, y + t, ahead);
            for (; t + 2 <= n; t += 2) pass<1, 2>(m, first, last, begin, end, x + t, y + t, ahead);
            if (t < n) pass<V::STRIPS, 1>(m, first, last, begin, end, x + t, y + t, ahead);
        }
        for (int64_t row = first > in_strips ? first : in_strips; row < last; ++row)
            for (t = 0; t < n; ++t) y[t][row] = canonical(m, row, static_cast<const uint8_t *>(x[t]));
    }
};

}  // namespace
}  // namespace moegauge
