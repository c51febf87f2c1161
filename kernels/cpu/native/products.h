// Products of weight rows with inputs, and the read stream, over an instruction set's vector type V.
// Included once per instruction set, after its target pragma, so everything here is internal to that translation unit.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core.h"
#include "decode.h"
#include "elementwise.h"
#include "weighted_sum.h"
#include "products_4bit.h"

namespace moegauge {
namespace {

template <class V, int64_t FORMAT>
struct Rows {
    static constexpr Traits TRAIT = TRAITS[FORMAT];
    using D = Decode<V, TRAIT.element, TRAIT.scale>;
    using F = typename V::F;

    static size_t prepared_bytes(int64_t columns) {
        return static_cast<size_t>((columns + D::COLUMNS - 1) / D::COLUMNS) * D::INPUT;
    }

    static void prepare(const float *x, int64_t columns, uint8_t *out) {
        int64_t c = 0;
        for (; c + D::COLUMNS <= columns; c += D::COLUMNS, out += D::INPUT) D::prepare(x + c, out);
        if (c < columns) {
            float last[D::COLUMNS] = {};
            std::memcpy(last, x + c, static_cast<size_t>(columns - c) * 4);
            D::prepare(last, out);
        }
    }

    // Bytes of scales of a row of blocks; a row's own scale is applied to its sum.
    static int64_t scale_row(int64_t columns) { return TRAIT.scales_rows() ? 0 : TRAIT.groups(columns) * TRAIT.scale_bytes(); }

    // Interleaved rows lie in groups of four: 64 bytes of each in turn, so that a group is one sequential stream. One stream is
    // what the hardware prefetchers follow best: on Zen 5 it is worth 2 to 9 per cent of the roof over four rows apart
    // (docs/kernels.md).
    static constexpr int GROUP = 4;

    static const uint8_t *start(const Matrix &m, int64_t row, bool interleaved) {
        const int64_t wide = TRAIT.row_bytes(m.columns);
        return interleaved ? m.weights + row / GROUP * GROUP * wide + row % GROUP * PIECE : m.weights + row * wide;
    }

    // R rows times T inputs. Rows are `step` apart, or, interleaved, neighbours in one group. Outputs of rows outside
    // [first, last) are dropped.
    template <int R, int T, bool INTERLEAVED>
    static void tile(const Matrix &m, int64_t row, int64_t step, int64_t first, int64_t last, const void *const *x,
                     float *const *y, int64_t ahead) {
        constexpr int STRIDE = INTERLEAVED ? GROUP * PIECE : PIECE;
        constexpr int64_t BYTES = D::BYTES / PIECE * STRIDE;
        // Where my rows begin: weights w, scales s, prepared inputs xs.
        const int64_t scale_wide = scale_row(m.columns);
        const uint8_t *w[R], *s[R], *xs[T];
        for (int r = 0; r < R; ++r) {
            const int64_t at = row + r * step;
            w[r] = start(m, at, INTERLEAVED);
            s[r] = m.scales + at / TRAIT.rows * scale_wide;
        }
        for (int t = 0; t < T; ++t) xs[t] = static_cast<const uint8_t *>(x[t]);
        // Stream and multiply, a unit of columns at a time; acc: R x T vectors of partial sums, one per lane.
        F acc[R][T];
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) acc[r][t] = V::zero();
        for (int64_t u = m.columns / D::COLUMNS; u > 0; --u) {
            for (int r = 0; r < R; ++r)
                for (int b = 0; b < D::BYTES; b += 64) __builtin_prefetch(w[r] + ahead + piece<STRIDE>(b), 0, 3);
            D::template unit<R, T, STRIDE>(w, s, xs, acc);
            for (int r = 0; r < R; ++r) {
                w[r] += BYTES;
                s[r] += D::SCALES;
            }
            for (int t = 0; t < T; ++t) xs[t] += D::INPUT;
        }
        if (const int64_t rest = m.columns % D::COLUMNS) {  // the last unit, padded with zeros
            uint8_t end[R][D::BYTES] = {}, scale[R][D::SCALES ? D::SCALES : 1] = {};
            const uint8_t *lw[R], *ls[R];
            for (int r = 0; r < R; ++r) {
                const int64_t bytes = TRAIT.row_bytes(rest);  // interleaved: whole pieces
                for (int64_t b = 0; b < bytes; b += PIECE)
                    std::memcpy(end[r] + b, w[r] + piece<STRIDE>(b), static_cast<size_t>(bytes - b < PIECE ? bytes - b : PIECE));
                if (D::SCALES) std::memcpy(scale[r], s[r], static_cast<size_t>(scale_row(rest)));
                lw[r] = end[r];
                ls[r] = scale[r];
            }
            D::template unit<R, T, PIECE>(lw, ls, xs, acc);
        }
        // Epilogue: lanes are added, a row's own scale is applied, sums go to y[t][row].
        for (int t = 0; t < T; ++t) {
            float sums[R];
            if constexpr (R == 4)
                V::sum4(acc[0][t], acc[1][t], acc[2][t], acc[3][t], sums);
            else
                for (int r = 0; r < R; ++r) sums[r] = V::sum(acc[r][t]);
            for (int r = 0; r < R; ++r) {
                const int64_t at = row + r * step;
                const float scale = TRAIT.scales_rows() ? get_float(m.scales + 4 * at) : D::FACTOR;
                if (at >= first && at < last) y[t][at] = sums[r] * scale;
            }
        }
    }

    // Rows [first, last) times T inputs.
    template <int T>
    static void pass(const Matrix &m, int64_t first, int64_t last, const void *const *x, float *const *y, int64_t ahead) {
        // Four inputs leave room for two rows in 16 registers, and in 32 where a group's sums are kept beside the row's.
        constexpr int R = T < 4 || (V::REGISTERS >= 32 && !D::GROUPED) ? 4 : 2;
        if (m.interleaved) {
            const int64_t whole = m.rows / GROUP * GROUP, end = last < whole ? last : whole;
            for (int64_t r = first / GROUP * GROUP; r < end; r += R)
                tile<R, T, true>(m, r, 1, first, last, x, y, ahead);
            for (int64_t r = first > whole ? first : whole; r < last; ++r)
                tile<1, T, false>(m, r, 0, first, last, x, y, ahead);
            return;
        }
        // R rows equal parts of the range apart go side by side: their inputs are loaded once.
        const int64_t part = (last - first) / R;
        for (int64_t r = first; r < first + part; ++r) tile<R, T, false>(m, r, part, first, last, x, y, ahead / R);
        for (int64_t r = first + R * part; r < last; ++r) tile<1, T, false>(m, r, 0, first, last, x, y, ahead);
    }

    // Inputs four at a time, and all rows of the range for each four: the range (a chunk of the executor's) stays in the
    // second-level cache and four inputs in the first, where all inputs of a large batch would fit neither.
    static void rows(const Matrix &m, int64_t first, int64_t last, const void *const *x, int64_t n, float *const *y,
                     int64_t ahead) {
        int64_t t = 0;
        for (; t + 4 <= n; t += 4) pass<4>(m, first, last, x + t, y + t, ahead);
        if (t + 2 <= n) {
            pass<2>(m, first, last, x + t, y + t, ahead);
            t += 2;
        }
        if (t < n) pass<1>(m, first, last, x + t, y + t, ahead);
    }
};

template <class V, int S>
uint64_t read(const uint8_t *p, int64_t bytes, int64_t ahead) {
    typename V::I sum[S][64 / V::W];
    const int64_t part = bytes / S / 64 * 64;
    for (int s = 0; s < S; ++s)
        for (int v = 0; v < 64 / V::W; ++v) sum[s][v] = V::load(p + s * part + v * V::W);
    for (int64_t i = 64; i < part; i += 64)
        for (int s = 0; s < S; ++s) {
            if (ahead) __builtin_prefetch(p + s * part + i + ahead, 0, 3);
            for (int v = 0; v < 64 / V::W; ++v) sum[s][v] = V::xor_(sum[s][v], V::load(p + s * part + i + v * V::W));
        }
    uint64_t all = 0;
    for (auto &lane : sum)
        for (auto &v : lane) all ^= V::fold(v);
    return all;
}

// The same vectors with fp8 straight to float32 (see decode.h).
template <class V>
struct Direct : V {
    static constexpr bool DIRECT_FP8 = true;
};

// The products of one format.
struct Products {
    size_t (*prepared_bytes)(int64_t columns);
    void (*prepare)(const float *x, int64_t columns, uint8_t *out);
    void (*rows)(const Matrix &m, int64_t first, int64_t last, const void *const *x, int64_t n, float *const *y, int64_t ahead);
};

// V8 is the vector type of the e4m3 products.
template <class V, class V8, int64_t FORMAT>
constexpr Products products_of() {
    using Vector = std::conditional_t<TRAITS[FORMAT].element == Element::E4M3, V8, V>;
    using Of = std::conditional_t<TRAITS[FORMAT].bits() == 4, Strips<Vector, FORMAT>, Rows<Vector, FORMAT>>;
    return {Of::prepared_bytes, Of::prepare, Of::rows};
}

template <class V, class V8, class Formats>
struct EachFormat;
template <class V, class V8, int64_t... FORMAT>
struct EachFormat<V, V8, std::integer_sequence<int64_t, FORMAT...>> {
    static constexpr Products products[] = {products_of<V, V8, FORMAT>()...};
};

template <class V, class V8 = V>
struct Table {
    using Each = EachFormat<V, V8, std::make_integer_sequence<int64_t, FORMATS>>;
    static size_t prepared_bytes(int64_t format, int64_t columns) { return Each::products[format].prepared_bytes(columns); }
    static void prepare(int64_t format, const float *x, int64_t columns, void *out) {
        Each::products[format].prepare(x, columns, static_cast<uint8_t *>(out));
    }
    static void rows(const Matrix &m, int64_t first, int64_t last, const void *const *x, int64_t n, float *const *y,
                     int64_t ahead) {
        Each::products[m.format].rows(m, first, last, x, n, y, ahead);
    }
    static void mix(int64_t format, const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t width,
                    const float *const *p, float *const *out, int64_t heads) {
        const auto sums = TRAITS[format].element == Element::BF16 ? Mix<V, Element::BF16>::rows : Mix<V, Element::E4M3>::rows;
        sums(rows, row_bytes, count, width, p, out, heads);
    }
    static uint64_t stream(const uint8_t *p, int64_t bytes, int64_t streams, int64_t ahead) {
        switch (streams) {
            case 1: return read<V, 1>(p, bytes, ahead);
            case 2: return read<V, 2>(p, bytes, ahead);
            case 4: return read<V, 4>(p, bytes, ahead);
            default: return read<V, 8>(p, bytes, ahead);
        }
    }
    static const Kernels *get() {
        static const Kernels table = {V::name, V::W, prepared_bytes, prepare, rows, mix, norm, gate, exponentials, add, stream};
        return &table;
    }
};

#if defined(__x86_64__)
// AMD multiplies subnormal numbers at full speed; Intel takes some 150 cycles for each.
template <class V>
const Kernels *x86_table() {
    return __builtin_cpu_is("amd") ? Table<V, Direct<V>>::get() : Table<V>::get();
}
#endif

}  // namespace
}  // namespace moegauge
