// The small work around the products: what follows the sums, the embedding row, recurrent state, routing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "executor.h"

namespace moegauge {
namespace {

float bf16(const uint8_t *p) {
    uint16_t half;
    std::memcpy(&half, p, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

float f32(const uint8_t *p) {
    float f;
    std::memcpy(&f, p, 4);
    return f;
}

float e4m3(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if ((code & 127) == 127) return NAN;
    const float size = exponent ? std::ldexp(static_cast<float>(8 + mantissa), exponent - 10) : std::ldexp(static_cast<float>(mantissa), -9);
    return code & 128 ? -size : size;
}

float e2m1(int code) {
    static const float SIZE[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    return code & 8 ? -SIZE[code & 7] : SIZE[code & 7];
}

// One element of a packed matrix, slowly: the embedding row's way. `lanes` rows make a strip of 4-bit weights (strips.h),
// four rows a group of the others (rows.h).
float element(const Matrix &m, int64_t lanes, int64_t r, int64_t c) {
    const int64_t wide = matrix_row_bytes(m.format, m.columns);
    const uint8_t *row = m.weights + r * wide;
    const bool strip = m.woven && m.format >= INT4 && r < m.rows / lanes * lanes;
    const int64_t bytes = m.format == F32 ? 4 : m.format == BF16 ? 2 : 1, at = c * bytes;
    const bool group = m.woven && m.format < INT4 && r < m.rows / 4 * 4;
    const uint8_t *whole = group ? m.weights + r / 4 * 4 * wide + r % 4 * 64 + at / 64 * 256 + at % 64 : row + at;
    const int64_t first = r / lanes * lanes;
    const auto scale_row = [&](int64_t group, int64_t size) {
        const int64_t groups = (m.columns + group - 1) / group, g = c / group;
        return m.scales + (strip ? first * groups + g * lanes + r - first : r * groups + g) * size;
    };
    const uint8_t *byte = strip ? m.weights + first * wide + (c / 8 * lanes + r - first) * 4 + c % 8 / 2 : row + c / 2;
    const int nibble = m.format >= INT4 ? *byte >> (c % 2 * 4) & 15 : 0;
    switch (m.format) {
        case F32: return f32(whole);
        case BF16: return bf16(whole);
        case FP8: return e4m3(*whole) * f32(m.scales + (r / 128 * ((m.columns + 127) / 128) + c / 128) * 4);
        case INT8: return static_cast<float>(static_cast<int8_t>(*whole)) * f32(m.scales + 4 * r);
        case INT4: return static_cast<float>(nibble - 8) * bf16(scale_row(32, 2));
        case INT4_G128: return static_cast<float>(nibble - 8) * bf16(scale_row(128, 2));
        case MXFP4: return e2m1(nibble) * std::ldexp(1.0f, *scale_row(32, 1) - 127);
        default: return e2m1(nibble) * e4m3(*scale_row(16, 1)) * *m.tensor_scale;
    }
}

float silu(float x) { return x / (1 + std::exp(-x)); }

// Share [first, last) of n elements for one thread, in runs of 16 floats so that no cache line has two writers.
void share(int64_t n, int thread, int threads, int64_t &first, int64_t &last) {
    const int64_t step = ((n + threads - 1) / threads + 15) / 16 * 16;
    first = std::min(n, thread * step);
    last = std::min(n, first + step);
}

}  // namespace

int64_t matrix_row_bytes(int64_t format, int64_t columns) {
    return format == F32 ? 4 * columns : format == BF16 ? 2 * columns : format >= INT4 ? (columns + 1) / 2 : columns;
}

float vector_at(const Vector &v, int64_t slot, int64_t i) {
    const uint8_t *p = v.data + slot * v.stride;
    return v.is_f32 ? f32(p + 4 * i) : bf16(p + 2 * i);
}

void embed(const Operation &op, int64_t lanes, int thread, int threads) {
    int64_t first, last;
    share(op.y.width, thread, threads, first, last);
    for (int64_t b = 0; b < op.batch; ++b)
        for (int64_t c = first; c < last; ++c) op.y.data[b * op.y.pitch + c] = element(*op.matrices, lanes, b, c);
}

void update_state(const Operation &op, int thread, int threads) {
    int64_t first, last;
    const int64_t width = op.y.width;
    share(width, thread, threads, first, last);
    std::vector<double> sums(static_cast<size_t>(last - first));
    for (int64_t b = 0; b < op.batch; ++b) {
        std::fill(sums.begin(), sums.end(), 0.0);
        const float *x = op.x.data + b * op.x.pitch;
        float *state = op.state + b * op.elements;
        for (int64_t row = 0; row < op.elements; row += width)
            for (int64_t c = first; c < last && row + c < op.elements; ++c) {
                const float s = 0.5f * state[row + c] + 0.5f * x[(row + c) % op.x.width];
                state[row + c] = s;
                sums[static_cast<size_t>(c - first)] += s;
            }
        for (int64_t c = first; c < last; ++c) {
            const int64_t n = c < op.elements ? (op.elements - c + width - 1) / width : 0;
            op.y.data[b * op.y.pitch + c] = n ? static_cast<float>(sums[static_cast<size_t>(c - first)] / static_cast<double>(n)) : 0;
        }
    }
}

void choose(Route &route, int thread, int threads) {
    std::vector<float> score(static_cast<size_t>(route.experts));
    for (int64_t b = thread; b < route.batch; b += threads) {
        const float *logits = route.logits.data + b * route.logits.pitch;
        for (int64_t e = 0; e < route.experts; ++e)
            score[static_cast<size_t>(e)] = route.prior[b * route.experts + e] + static_cast<float>(route.gain) * logits[e];
        float largest = -INFINITY, total = 0;
        int32_t *ids = route.ids + b * route.top_k;
        float *shares = route.share + b * route.top_k;
        for (int64_t i = 0; i < route.top_k; ++i) {
            int64_t best = -1;  // NaN scores lose to every number; with nothing else left the first is taken
            for (int64_t e = 0; e < route.experts; ++e)
                if (std::find(ids, ids + i, e) == ids + i && (best < 0 || score[static_cast<size_t>(e)] > score[static_cast<size_t>(best)])) best = e;
            ids[i] = static_cast<int32_t>(best);
            largest = std::max(largest, logits[best]);
        }
        for (int64_t i = 0; i < route.top_k; ++i) total += shares[i] = std::exp(logits[ids[i]] - largest);
        for (int64_t i = 0; i < route.top_k; ++i) shares[i] /= total;
    }
}

void number_distinct(Route &route) {
    std::vector<int32_t> number(static_cast<size_t>(route.experts), -1);
    route.distinct = 0;
    for (int64_t c = 0; c < route.batch * route.top_k; ++c) {
        const int32_t e = route.ids[c];
        int32_t &j = number[static_cast<size_t>(e)];
        if (j < 0) {
            j = static_cast<int32_t>(route.distinct++);
            route.distinct_slot[j] = static_cast<int32_t>((j * route.stride + e % route.stride) % route.slots);
        }
        route.index[c] = j;
        route.slot[c] = route.distinct_slot[j];
    }
}

void finish(const Operation &op, const float *sums, int thread, int threads) {
    int64_t first, last;
    if (op.kind == PRODUCT) {
        share(op.y.width, thread, threads, first, last);
        for (int64_t b = 0; b < op.batch; ++b) {
            float *y = op.y.data + b * op.y.pitch;
            const float *s = sums + b * op.y.width;
            for (int64_t c = first; c < last; ++c) y[c] = op.accumulate ? y[c] + s[c] : s[c];
            for (int64_t v = 0; v < op.n_biases; ++v)
                for (int64_t row = 0; row < op.biases[v].length; row += op.y.width)
                    for (int64_t c = first; c < last && row + c < op.biases[v].length; ++c)
                        y[c] += vector_at(op.biases[v], 0, row + c);
        }
        return;
    }
    if (op.kind == GATED) {
        share(op.y.width, thread, threads, first, last);
        for (int64_t b = 0; b < op.batch; ++b) {
            const float *s = sums + b * op.y.width * op.n_matrices;
            for (int64_t c = first; c < last; ++c)
                op.y.data[b * op.y.pitch + c] = silu(s[c]) * (op.n_matrices == 2 ? s[op.y.width + c] : 1.0f);
        }
        return;
    }
    const Route &route = *op.route;
    const int64_t choices = op.batch * op.top_k;
    if (op.kind == EXPERTS_UP) {  // blocks: matrices per expert (2 with a gate); accumulate: shared matrices
        const int64_t width = op.matrices[0].rows, gated = op.blocks == 2;
        share(width, thread, threads, first, last);
        const float *up = sums + (gated ? choices * width : 0);
        for (int64_t n = 0; n < choices; ++n) {
            float *y = op.y.data + n / op.top_k * op.y.pitch + n % op.top_k * width;
            for (int64_t c = first; c < last; ++c) {
                float g = sums[n * width + c], u = up[n * width + c];
                if (op.n_biases) {
                    if (gated) g += vector_at(op.biases[0], route.slot[n], c);
                    u += vector_at(op.biases[gated], route.slot[n], c);
                }
                y[c] = gated ? silu(g) * u : silu(u);
            }
        }
        int64_t at = op.top_k * width;
        const float *s = sums + choices * width * op.blocks;
        for (int64_t m = op.blocks; m < op.n_matrices; m += op.blocks) {
            const int64_t wide = op.matrices[m].rows;
            share(wide, thread, threads, first, last);
            for (int64_t b = 0; b < op.batch; ++b)
                for (int64_t c = first; c < last; ++c)
                    op.y.data[b * op.y.pitch + at + c] =
                        silu(s[b * wide + c]) * (gated ? s[(op.batch + b) * wide + c] : 1.0f);
            at += wide;
            s += op.batch * wide * op.blocks;
        }
        return;
    }
    const int64_t width = op.y.width;
    share(width, thread, threads, first, last);
    for (int64_t b = 0; b < op.batch; ++b)
        for (int64_t c = first; c < last; ++c) {
            float y = 0;
            for (int64_t n = b * op.top_k; n < (b + 1) * op.top_k; ++n) {
                float one = sums[n * width + c];
                for (int64_t i = c; op.n_biases && i < op.biases[0].length; i += width)
                    one += vector_at(op.biases[0], route.slot[n], i);
                y += route.share[n] * one;
            }
            for (int64_t m = 1; m < op.n_matrices; ++m) y += sums[(choices + (m - 1) * op.batch + b) * width + c];
            op.y.data[b * op.y.pitch + c] += y;
        }
}

}  // namespace moegauge
