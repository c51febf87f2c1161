// What follows a product on the CPU (bias, SwiGLU, weighted sums); embedding rows, recurrent state, routing.
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

float scale(Scale kind, const uint8_t *p) {
    switch (kind) {
        case Scale::NONE: return 1;
        case Scale::F32: return f32(p);
        case Scale::BF16: return bf16(p);
        case Scale::E8M0: return std::ldexp(1.0f, *p - 127);
        default: return e4m3(*p);
    }
}

// The weight in column `c` whose first byte is *p.
float weight(Element kind, const uint8_t *p, int64_t c) {
    const int nibble = *p >> (c % 2 * 4) & 15;
    switch (kind) {
        case Element::F32: return f32(p);
        case Element::BF16: return bf16(p);
        case Element::E4M3: return e4m3(*p);
        case Element::INT8: return static_cast<float>(static_cast<int8_t>(*p));
        case Element::INT4: return static_cast<float>(nibble - 8);
        default: return e2m1(nibble);
    }
}

// One element of a packed matrix, slowly: the embedding row's way. `lanes` rows make a strip of 4-bit weights, four bytes
// of each in turn (products_4bit.h), four rows a group of the others, 64 bytes of each (products.h).
float element(const Matrix &m, int64_t lanes, int64_t r, int64_t c) {
    const Traits t = TRAITS[m.format];
    const bool strips = t.bits() == 4;
    const int64_t group = strips ? lanes : 4, piece = strips ? 4 : 64, first = r / group * group;
    const bool interleaved = m.interleaved && r < m.rows / group * group;
    const int64_t wide = t.row_bytes(m.columns), at = c * t.bits() / 8;
    const uint8_t *w = interleaved ? m.weights + first * wide + (at / piece * group + r - first) * piece + at % piece
                             : m.weights + r * wide + at;
    const int64_t groups = t.groups(m.columns), g = t.columns ? c / t.columns : 0;
    const int64_t s = interleaved && strips ? first * groups + g * lanes + r - first : r / t.rows * groups + g;
    const float value = weight(t.element, w, c) * scale(t.scale, m.scales + s * t.scale_bytes());
    return t.tensor_scale ? value * *m.tensor_scale : value;
}

// Share [first, last) of n elements for one thread, in runs of 16 floats so that no cache line has two writers.
void share(int64_t n, int thread, int threads, int64_t &first, int64_t &last) {
    const int64_t step = ((n + threads - 1) / threads + 15) / 16 * 16;
    first = std::min(n, thread * step);
    last = std::min(n, first + step);
}

}  // namespace

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
    *route.distinct = 0;
    for (int64_t c = 0; c < route.batch * route.top_k; ++c) {
        const int32_t e = route.ids[c];
        int32_t &j = number[static_cast<size_t>(e)];
        if (j < 0) {
            j = static_cast<int32_t>((*route.distinct)++);
            route.distinct_slot[j] = static_cast<int32_t>((j * route.stride + e % route.stride) % route.slots);
        }
        route.index[c] = j;
        route.slot[c] = route.distinct_slot[j];
    }
}

namespace {

// y += factor * bias[i] for every i < bias.length with i mod width in [first, last); y is that of column 0.
void add_bias(const Kernels &kernels, const Vector &bias, int64_t slot, float factor, int64_t width, int64_t first,
              int64_t last, float *y) {
    const uint8_t *data = bias.data + slot * bias.stride;
    const int64_t size = bias.is_f32 ? 4 : 2;
    for (int64_t row = 0; row + first < bias.length; row += width)
        kernels.add(data + (row + first) * size, bias.is_f32, factor, std::min(last, bias.length - row) - first, y + first);
}

// y (+)= factor * x, n of them.
void weigh(const float *x, float factor, int64_t n, float *y) {
    for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

void finish_product(const Operation &op, const Kernels &kernels, const float *sums, int64_t first, int64_t last) {
    for (int64_t b = 0; b < op.batch; ++b, sums += op.y.width) {
        float *y = op.y.data + b * op.y.pitch;
        if (op.accumulate)
            weigh(sums + first, 1, last - first, y + first);
        else
            std::copy(sums + first, sums + last, y + first);
        for (int64_t v = 0; v < op.n_biases; ++v) add_bias(kernels, op.biases[v], 0, 1, op.y.width, first, last, y);
    }
}

void finish_gated(const Operation &op, const Kernels &kernels, const float *sums, int64_t first, int64_t last) {
    for (int64_t b = 0; b < op.batch; ++b, sums += op.y.width * op.n_matrices)
        kernels.gate(sums + first, op.n_matrices == 2 ? sums + op.y.width + first : nullptr, last - first,
                     op.y.data + b * op.y.pitch + first);
}

// `blocks`: matrices per expert, 2 with a gate; `accumulate`: shared matrices. Sums as Executor::plan_experts lays them.
void finish_up(const Operation &op, const Kernels &kernels, const float *sums, int thread, int threads) {
    const Route &route = *op.route;
    const int64_t choices = op.batch * op.top_k, width = op.matrices[0].rows;
    const bool gated = op.blocks == 2;
    int64_t first, last;
    share(width, thread, threads, first, last);
    std::vector<float> biased(2 * static_cast<size_t>(width));
    for (int64_t n = 0; n < choices; ++n) {
        const float *part[2] = {sums + n * width, sums + (choices + n) * width};
        for (int64_t v = 0; v < op.n_biases; ++v) {
            float *own = biased.data() + v * width;
            std::copy(part[v] + first, part[v] + last, own + first);
            add_bias(kernels, op.biases[v], route.slot[n], 1, width, first, last, own);
            part[v] = own;
        }
        kernels.gate(part[0] + first, gated ? part[1] + first : nullptr, last - first,
                     op.y.data + n / op.top_k * op.y.pitch + n % op.top_k * width + first);
    }
    int64_t at = op.top_k * width;
    const float *s = sums + choices * width * op.blocks;
    for (int64_t m = op.blocks; m < op.n_matrices; m += op.blocks) {
        const int64_t wide = op.matrices[m].rows;
        share(wide, thread, threads, first, last);
        for (int64_t b = 0; b < op.batch; ++b)
            kernels.gate(s + b * wide + first, gated ? s + (op.batch + b) * wide + first : nullptr, last - first,
                         op.y.data + b * op.y.pitch + at + first);
        at += wide;
        s += op.batch * wide * op.blocks;
    }
}

void finish_down(const Operation &op, const Kernels &kernels, const float *sums, int64_t first, int64_t last) {
    const Route &route = *op.route;
    const int64_t choices = op.batch * op.top_k, width = op.y.width;
    std::vector<float> total(static_cast<size_t>(width));  // summed before it is added: as few roundings as the terms
    for (int64_t b = 0; b < op.batch; ++b) {
        std::fill(total.begin() + first, total.begin() + last, 0.0f);
        for (int64_t n = b * op.top_k; n < (b + 1) * op.top_k; ++n) {
            weigh(sums + n * width + first, route.share[n], last - first, total.data() + first);
            if (op.n_biases)
                add_bias(kernels, op.biases[0], route.slot[n], route.share[n], width, first, last, total.data());
        }
        for (int64_t m = 1; m < op.n_matrices; ++m)
            weigh(sums + (choices + (m - 1) * op.batch + b) * width + first, 1, last - first, total.data() + first);
        weigh(total.data() + first, 1, last - first, op.y.data + b * op.y.pitch + first);
    }
}

}  // namespace

void finish(const Operation &op, const Kernels &kernels, const float *sums, int thread, int threads) {
    int64_t first, last;
    share(op.y.width, thread, threads, first, last);
    switch (op.kind) {
        case PRODUCT: return finish_product(op, kernels, sums, first, last);
        case GATED: return finish_gated(op, kernels, sums, first, last);
        case EXPERTS_UP: return finish_up(op, kernels, sums, thread, threads);
        default: return finish_down(op, kernels, sums, first, last);
    }
}

}  // namespace moegauge
