// Structs of a step's operations, filled in by Python, and the table of kernels of an instruction set.
// Every integer is 64 bit, so there is no padding.
#pragma once
#include <cstddef>
#include <cstdint>

#include "formats.h"

namespace moegauge {

struct Matrix {            // `slots` matrices side by side; strides are bytes from one to the next
    const uint8_t *weights, *scales;
    const float *tensor_scale;
    int64_t weight_stride, scale_stride, tensor_stride;
    int64_t rows, columns, format;  // format: an index of TRAITS
    int64_t interleaved;         // rows lie in groups (products.h, products_4bit.h); 0: one after another, canonical
};

struct Vector {            // a small vector: norm gain or bias
    const uint8_t *data;
    int64_t stride, length, is_f32;
};

struct View {              // [batch, width] float32, `pitch` floats from row to row
    float *data;
    int64_t width, pitch;
};

struct Route {             // state of one routing decision, kept between operations
    View logits;
    const float *prior;    // [batch, experts]
    int64_t batch, experts, top_k, stride, slots;
    double gain;
    int32_t *ids, *slot, *index;  // [batch, top_k]; index = which distinct expert
    float *share;                 // [batch, top_k]
    int32_t *distinct_slot;       // [distinct]
    int64_t *distinct;            // how many
};

enum Kind : int64_t { EMBED, PRODUCT, GATED, ATTENTION, STATE, ROUTE, EXPERTS_UP, EXPERTS_DOWN };

struct Operation {
    int64_t kind, batch;
    View x, y;
    const Matrix *matrices;   // PRODUCT: all; GATED: gate, up; EXPERTS_*: routed (gate, up | down), then shared
    int64_t n_matrices;
    const Vector *gain, *biases;
    int64_t n_biases, accumulate, blocks;
    Route *route;
    int64_t top_k;
    View k, v, q_rope;        // ATTENTION
    int64_t is_mla, heads, kv_heads, head_dim, value_dim, length, cache_format;
    const uint8_t *keys, *values;
    float *state;             // STATE
    int64_t elements;
};

// Where a run is cut: after about so many bytes of weights and caches it reads as many of a buffer, by all threads.
struct Cut {
    int64_t bytes;
    const uint8_t *buffer;    // null: nothing is read between
    int64_t buffer_bytes, at; // `at`: where the next slice begins; moved on
    int64_t streams, prefetch;
};

// A part of a run and the slice behind it. Nanoseconds; `lost` is wall time that the worst thread did not have a core.
struct Segment {
    int64_t step, step_lost, step_bytes, roof, roof_lost, roof_bytes;
};

// One instruction set's kernels. A prepared input is an opaque run of bytes in the order its products want.
struct Kernels {
    const char *name;
    int64_t width;            // bytes of a vector register
    // Bytes a prepared input of `columns` takes.
    size_t (*prepared_bytes)(int64_t format, int64_t columns);
    void (*prepare)(int64_t format, const float *x, int64_t columns, void *out);
    // y[t][r] = W[r] . x[t] for rows [first, last) and `tokens` prepared inputs; r counts from 0 at row 0.
    void (*rows)(const Matrix &, int64_t first, int64_t last, const void *const *x, int64_t tokens, float *const *y,
                 int64_t prefetch);
    // out[h][:] += sum over t of p[h][t] * row t of a bf16 or fp8 (unscaled) cache.
    void (*mix)(int64_t format, const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t width,
                const float *const *p, float *const *out, int64_t heads);
    // out = x / sqrt(mean(x^2) + 1e-6) * gain; `gain` is bfloat16, or float32.
    void (*norm)(const float *x, int64_t n, const uint8_t *gain, int64_t is_f32, float *out);
    // y = silu(gate) * up; `up` may be null: silu(gate).
    void (*gate)(const float *gate, const float *up, int64_t n, float *y);
    // s = e^(s - most), most = the largest s of n > 0; returns the sum.
    float (*exponentials)(float *s, int64_t n, float *most);
    // y += factor * (x as float32); x is bfloat16, or float32.
    void (*add)(const uint8_t *x, int64_t is_f32, float factor, int64_t n, float *y);
    // XOR of everything read: `streams` equal runs at once, prefetching `prefetch` bytes ahead (0: not).
    uint64_t (*stream)(const uint8_t *p, int64_t bytes, int64_t streams, int64_t prefetch);
};

const Kernels *plain_kernels();
const Kernels *avx2_kernels();     // null where not compiled in or not supported by this CPU
const Kernels *avx512_kernels();
const Kernels *avx512_vnni_kernels();
const Kernels *avx512_vbmi_kernels();
const Kernels *neon_kernels();

}  // namespace moegauge
