// Decode attention on the CPU: runs of cached tokens in parallel, each with its own running maximum and sum.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "executor.h"

namespace moegauge {
namespace {
constexpr int64_t RUN = 256;  // tokens per task: 256 scores per head stay in the first-level cache

float dot(const float *a, const float *b, int64_t n) {
    float lanes[16] = {}, sum = 0;  // sixteen sums side by side: one would wait four cycles for each addition
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; ++l) lanes[l] += a[i + l] * b[i + l];
    for (; i < n; ++i) sum += a[i] * b[i];
    for (float lane : lanes) sum += lane;
    return sum;
}
}  // namespace

// Query head h of sequence b, as the cache's keys see it. For mla it is [latent, rope] from two registers.
static void query(const Operation &op, int64_t b, int64_t h, float *out) {
    const int64_t wide = op.is_mla ? op.value_dim : op.head_dim;
    std::memcpy(out, op.x.data + b * op.x.pitch + h * wide, static_cast<size_t>(wide) * 4);
    if (op.is_mla && op.head_dim > wide)
        std::memcpy(out + wide, op.q_rope.data + b * op.q_rope.pitch + h * (op.head_dim - wide),
                    static_cast<size_t>(op.head_dim - wide) * 4);
}

void Executor::attention(const Operation &op, int thread) {
    // Which tasks there are: one per sequence, KV head and run of 256 cached tokens; `group` query heads share each.
    const int64_t runs = (op.length + RUN - 1) / RUN, group = op.heads / op.kv_heads, tasks = op.batch * op.kv_heads * runs;
    const int64_t element = TRAITS[op.cache_format].row_bytes(1);
    const int64_t entry = op.value_dim + 2;  // per run and head: maximum, sum, value sums
    const size_t prepared = (kernels_->prepared_bytes(op.cache_format, op.head_dim) + 63) / 64 * 64;
    const size_t all = static_cast<size_t>(op.batch * op.heads);
    if (thread == 0) {
        input_buffer_.take(all * prepared);
        partial_.of<float>(all * static_cast<size_t>(runs * entry));
        scores_.of<float>(static_cast<size_t>(pool_.size() * group * RUN));
        const size_t ones = static_cast<size_t>((op.length + 127) / 128 * ((op.head_dim + 127) / 128));
        std::fill_n(ones_.of<float>(ones), ones, 1.0f);  // a raw fp8 cache has no scales
        next_.store(0, std::memory_order_relaxed);
    }
    pool_.barrier();
    // Queries [batch * heads, head_dim], scaled, in the order the cache's format wants.
    auto *inputs = static_cast<char *>(input_buffer_.take(0));
    auto *partial = static_cast<float *>(partial_.take(0));
    const float scale = 1 / std::sqrt(static_cast<float>(op.head_dim));
    std::vector<float> q(static_cast<size_t>(op.head_dim));
    for (int64_t i = thread; runs && i < op.batch * op.heads; i += pool_.size()) {
        query(op, i / op.heads, i % op.heads, q.data());
        for (float &v : q) v *= scale;
        kernels_->prepare(op.cache_format, q.data(), op.head_dim, inputs + static_cast<size_t>(i) * prepared);
    }
    pool_.barrier();
    // Stream and multiply: scores of a run, their exponentials, and the weighted sum of the run's values.
    std::vector<const void *> x(static_cast<size_t>(group));
    std::vector<float *> y(x.size()), o(x.size());
    std::vector<const float *> p(x.size());
    float *scores = static_cast<float *>(scores_.take(0)) + thread * group * RUN;
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
        pool_.go_on();
        const int64_t run = task % runs, kv = task / runs % op.kv_heads, b = task / runs / op.kv_heads;
        const int64_t first = run * RUN, count = std::min(RUN, op.length - first);
        const int64_t key_bytes = op.head_dim * element, value_bytes = op.value_dim * element;
        Matrix keys{};  // [length, head_dim], of which rows [first, first + count)
        keys.weights = op.keys + (b * op.kv_heads + kv) * op.length * key_bytes;
        keys.scales = static_cast<const uint8_t *>(ones_.take(0));
        keys.rows = op.length, keys.columns = op.head_dim, keys.format = op.cache_format;
        for (int64_t g = 0; g < group; ++g) {
            const int64_t head = b * op.heads + kv * group + g;
            x[static_cast<size_t>(g)] = inputs + static_cast<size_t>(head) * prepared;
            y[static_cast<size_t>(g)] = scores + g * RUN - first;
        }
        kernels_->rows(keys, first, first + count, x.data(), group, y.data(), prefetch_);
        for (int64_t g = 0; g < group; ++g) {
            float *s = scores + g * RUN, *out = partial + ((b * op.heads + kv * group + g) * runs + run) * entry;
            // Partial sums of the run: its maximum, the sum of exponentials, sums of values [value_dim].
            out[1] = kernels_->exponentials(s, count, out);
            std::fill(out + 2, out + entry, 0.0f);
            o[static_cast<size_t>(g)] = out + 2;
            p[static_cast<size_t>(g)] = s;
        }
        const uint8_t *values = op.is_mla ? keys.weights + first * key_bytes
                                          : op.values + ((b * op.kv_heads + kv) * op.length + first) * value_bytes;
        kernels_->mix(op.cache_format, values, op.is_mla ? key_bytes : value_bytes, count, op.value_dim, p.data(), o.data(), group);
    }
    pool_.barrier();
    // Epilogue, one head at a time: the runs joined at their common maximum, with the new token's own key and value.
    for (int64_t i = thread; i < op.batch * op.heads; i += pool_.size()) {
        const int64_t b = i / op.heads, h = i % op.heads, kv = h / group;
        const float *key = op.k.data + b * op.k.pitch + kv * op.head_dim;
        const float *value = op.is_mla ? op.k.data + b * op.k.pitch : op.v.data + b * op.v.pitch + kv * op.value_dim;
        query(op, b, h, q.data());
        const float own = dot(q.data(), key, op.head_dim) * scale;
        const float *parts = partial + i * runs * entry;
        float most = own;
        for (int64_t r = 0; r < runs; ++r) most = std::max(most, parts[r * entry]);
        float *out = op.y.data + b * op.y.pitch + h * op.value_dim;
        const float mine = std::exp(own - most);
        float sum = mine;
        for (int64_t c = 0; c < op.value_dim; ++c) out[c] = mine * value[c];
        for (int64_t r = 0; r < runs; ++r) {
            const float weight = std::exp(parts[r * entry] - most);
            sum += weight * parts[r * entry + 1];
            for (int64_t c = 0; c < op.value_dim; ++c) out[c] += weight * parts[r * entry + 2 + c];
        }
        for (int64_t c = 0; c < op.value_dim; ++c) out[c] /= sum;
    }
}

}  // namespace moegauge
