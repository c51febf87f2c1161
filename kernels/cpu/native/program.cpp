// Copy a program and prove every address in it, before any thread runs it.
#include "program.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace moegauge {
namespace {

using Wide = __int128;  // products of three numbers of 40 bits

constexpr int64_t MOST = int64_t{1} << 40;  // of any count or width: a register of 2^40 floats is 4 TB
constexpr const char *NAMES[] = {"embedding", "product", "gated product", "attention", "state", "route", "experts up",
                                 "experts down"};

class Check {
  public:
    Check(const std::vector<Region> &regions, int64_t index, const Operation &op) : regions_(regions), index_(index), op_(op) {}

    [[noreturn]] void fail(const std::string &what) const {
        const bool known = 0 <= op_.kind && op_.kind < static_cast<int64_t>(std::size(NAMES));
        throw std::invalid_argument("operation " + std::to_string(index_) + " (" + (known ? NAMES[op_.kind] : "unknown kind") +
                                    "): " + what);
    }

    void want(bool holds, const char *what) const {
        if (!holds) fail(what);
    }

    void number(int64_t value, int64_t least, const char *what) const {
        if (value < least || value > MOST) fail(std::string(what) + " is " + std::to_string(value));
    }

    // [start, start + bytes) lies in one region, numbers of `size` bytes on their boundary.
    void memory(const void *start, Wide bytes, bool write, const char *what, size_t size = 1) const {
        if (bytes == 0) return;
        const auto first = reinterpret_cast<uintptr_t>(start);  // unsigned: an address may lie anywhere
        const auto begin = [](const Region &r) { return reinterpret_cast<uintptr_t>(r.start); };
        const auto after = std::upper_bound(regions_.begin(), regions_.end(), first,
                                            [&](uintptr_t p, const Region &r) { return p < begin(r); });
        const bool inside = after != regions_.begin() && Wide(first - begin(*(after - 1))) + bytes <= (after - 1)->bytes;
        if (first % size) fail(std::string(what) + " is not aligned");
        if (!inside) fail(std::string(what) + " reaches outside the memory of its program");
        if (write && !(after - 1)->writable) fail(std::string(what) + " would be written, in memory that is only read");
    }

    // `columns` of [batch, width] are there.
    void view(const View &v, Wide columns, bool write, const char *what) const {
        number(v.width, 0, what);
        number(v.pitch, v.width, what);
        if (columns > v.width)
            fail(std::string(what) + " is " + std::to_string(v.width) + " wide, " + std::to_string(static_cast<int64_t>(columns)) +
                 " are used");
        if (op_.batch && v.width) memory(v.data, (Wide(op_.batch - 1) * v.pitch + v.width) * 4, write, what, 4);
    }

    void vector(const Vector &v, int64_t length, int64_t slots, const char *what) const {
        number(v.length, length, what);
        number(v.stride, 0, what);
        memory(v.data, Wide(slots - 1) * v.stride + Wide(v.length) * (v.is_f32 ? 4 : 2), false, what);
    }

    void matrix(const Matrix &m, int64_t slots) const {
        number(m.rows, 1, "a matrix's rows");
        number(m.columns, 1, "a matrix's columns");
        number(m.weight_stride, 0, "a matrix's stride");
        number(m.scale_stride, 0, "a matrix's stride");
        number(m.tensor_stride, 0, "a matrix's stride");
        want(0 <= m.format && m.format < FORMATS, "a matrix has an unknown format");
        const Traits &t = TRAITS[m.format];
        // Interleaved rows are cut in pieces of 4 bytes (4 bits a weight) or 64 (products_4bit.h, products.h).
        want(!m.interleaved || m.columns * t.bits() % (8 * (t.bits() == 4 ? 4 : 64)) == 0, "a matrix cannot be interleaved");
        memory(m.weights, Wide(slots - 1) * m.weight_stride + Wide(m.rows) * t.row_bytes(m.columns), false, "a matrix's weights");
        if (t.scale_bytes())
            memory(m.scales, Wide(slots - 1) * m.scale_stride + Wide((m.rows + t.rows - 1) / t.rows) * t.groups(m.columns) * t.scale_bytes(),
                   false, "a matrix's scales");
        if (t.tensor_scale) memory(m.tensor_scale, Wide(slots - 1) * m.tensor_stride + 4, false, "a matrix's tensor scale", 4);
        want(m.tensor_stride % 4 == 0, "a matrix's tensor scale is not aligned");
    }

    void operation() const {
        number(op_.batch, 0, "batch");
        number(op_.n_matrices, 0, "matrices");
        number(op_.n_biases, 0, "biases");
        switch (op_.kind) {
            case EMBED: return embed();
            case PRODUCT: return product();
            case GATED: return gated();
            case ATTENTION: return attention();
            case STATE: return state();
            case ROUTE: return route();
            case EXPERTS_UP: return experts_up();
            case EXPERTS_DOWN: return experts_down();
            default: fail("kind " + std::to_string(op_.kind));
        }
    }

  private:
    // Matrices [first, last), what they read of x, and the gain over it.
    void inputs(int64_t first, int64_t last, int64_t slots, Wide blocks) const {
        for (int64_t m = first; m < last; ++m) {
            matrix(op_.matrices[m], slots);
            view(op_.x, blocks * op_.matrices[m].columns, false, "x");
            if (op_.gain) vector(*op_.gain, op_.matrices[m].columns, 1, "gain");
        }
    }

    void embed() const {
        if (!op_.batch) return;
        want(op_.n_matrices == 1, "wants one table");
        matrix(*op_.matrices, 1);
        want(op_.matrices->rows >= op_.batch, "its table has fewer rows than the batch");
        view(op_.y, op_.y.width, true, "y");
        want(op_.y.width <= op_.matrices->columns, "y is wider than the table");
    }

    void product() const {
        if (op_.n_matrices == 0 && op_.batch == 0) return;
        number(op_.blocks, 1, "blocks");
        inputs(0, op_.n_matrices, 1, op_.blocks);
        Wide rows = 0;
        for (int64_t m = 0; m < op_.n_matrices; ++m) {
            want(op_.matrices[m].rows % op_.blocks == 0, "rows are no multiple of the blocks");
            rows += op_.matrices[m].rows;
        }
        want(rows == op_.y.width, "y is not as wide as the matrices have rows");
        view(op_.y, rows, true, "y");
        for (int64_t v = 0; v < op_.n_biases; ++v) vector(op_.biases[v], 0, 1, "bias");
    }

    void gated() const {
        want(op_.n_matrices == 1 || op_.n_matrices == 2, "wants one or two matrices");
        want(op_.blocks == 1, "has blocks");
        inputs(0, op_.n_matrices, 1, 1);
        for (int64_t m = 0; m < op_.n_matrices; ++m)
            want(op_.matrices[m].rows == op_.y.width, "y is not as wide as a matrix has rows");
        view(op_.y, op_.y.width, true, "y");
    }

    void attention() const {
        number(op_.heads, 1, "heads");
        number(op_.kv_heads, 1, "KV heads");
        number(op_.head_dim, 1, "head_dim");
        number(op_.value_dim, 1, "value_dim");
        number(op_.length, 0, "length");
        want(op_.heads % op_.kv_heads == 0, "heads are no multiple of KV heads");
        want(0 <= op_.cache_format && op_.cache_format < FORMATS, "the cache has an unknown format");
        const Traits &t = TRAITS[op_.cache_format];  // the formats Mix sums, whose scales (all 1) attention() lays out
        want(t.element == Element::BF16 || (t.element == Element::E4M3 && t.rows == 128 && t.columns == 128),
             "a cache is bf16 or fp8");
        const Wide heads = op_.heads, kv_heads = op_.kv_heads, tokens = Wide(op_.batch) * kv_heads * op_.length;
        if (op_.is_mla) {
            want(op_.kv_heads == 1 && op_.value_dim <= op_.head_dim, "latent attention has one KV head, no narrower than a value");
            view(op_.x, heads * op_.value_dim, false, "q");
            if (op_.head_dim > op_.value_dim) view(op_.q_rope, heads * (op_.head_dim - op_.value_dim), false, "q_rope");
        } else {
            view(op_.x, heads * op_.head_dim, false, "q");
            view(op_.v, kv_heads * op_.value_dim, false, "v");
            memory(op_.values, tokens * op_.value_dim * t.row_bytes(1), false, "values");
        }
        view(op_.k, kv_heads * op_.head_dim, false, "k");
        view(op_.y, heads * op_.value_dim, true, "y");
        memory(op_.keys, tokens * op_.head_dim * t.row_bytes(1), false, "keys");
    }

    void state() const {
        if (!op_.batch) return;
        number(op_.elements, 0, "elements");
        view(op_.x, 1, false, "x");
        view(op_.y, 1, true, "y");
        memory(op_.state, Wide(op_.batch) * op_.elements * 4, true, "state", 4);
    }

    void chosen() const {
        want(op_.route, "has no route");
        const Route &r = *op_.route;
        number(r.batch, 0, "the route's batch");
        number(r.experts, 1, "the route's experts");
        number(r.top_k, 1, "top_k");
        number(r.stride, 1, "the route's stride");
        number(r.slots, 1, "the route's slots");
        want(r.top_k <= r.experts && r.experts < (int64_t{1} << 31) && r.slots < (int64_t{1} << 31), "top_k, experts and slots");
        want(r.batch == op_.batch, "its route has another batch");
        const Wide choices = Wide(r.batch) * r.top_k;
        for (const void *array : {static_cast<const void *>(r.ids), static_cast<const void *>(r.slot),
                                  static_cast<const void *>(r.index), static_cast<const void *>(r.share),
                                  static_cast<const void *>(r.distinct_slot)})
            memory(array, choices * 4, true, "the route's arrays", 4);
        memory(r.distinct, 8, true, "the route's arrays", 8);
    }

    void route() const {
        chosen();
        const Route &r = *op_.route;
        view(r.logits, r.experts, false, "logits");
        memory(r.prior, Wide(r.batch) * r.experts * 4, false, "prior", 4);
    }

    void experts_up() const {
        chosen();
        const int64_t routed = op_.n_matrices - op_.accumulate;  // accumulate: shared matrices here
        number(op_.accumulate, 0, "shared matrices");
        want(op_.blocks == 1 || op_.blocks == 2, "wants one or two matrices an expert");
        want(routed == op_.blocks && op_.accumulate % op_.blocks == 0, "its matrices are no whole experts");
        want(op_.top_k == op_.route->top_k, "its route has another top_k");
        inputs(0, routed, op_.route->slots, 1);
        inputs(routed, op_.n_matrices, 1, 1);
        Wide width = 0;
        for (int64_t m = 0; m < op_.n_matrices; m += op_.blocks) {
            want(op_.matrices[m].rows == op_.matrices[m + op_.blocks - 1].rows, "gate and up have other rows");
            width += (m ? 1 : Wide(op_.top_k)) * op_.matrices[m].rows;
        }
        view(op_.y, width, true, "y");
        want(op_.n_biases <= op_.blocks, "has more biases than matrices");
        for (int64_t v = 0; v < op_.n_biases; ++v) vector(op_.biases[v], 0, op_.route->slots, "bias");
    }

    void experts_down() const {
        chosen();
        want(op_.n_matrices >= 1, "wants a matrix");
        want(op_.top_k == op_.route->top_k, "its route has another top_k");
        Wide read = 0;
        for (int64_t m = 0; m < op_.n_matrices; ++m) {
            matrix(op_.matrices[m], m ? 1 : op_.route->slots);
            want(op_.matrices[m].rows == op_.y.width, "y is not as wide as a matrix has rows");
            read += (m ? 1 : Wide(op_.top_k)) * op_.matrices[m].columns;
        }
        want(!op_.gain, "has a gain");
        view(op_.x, read, false, "x");
        view(op_.y, op_.y.width, true, "y");
        want(op_.n_biases <= 1, "has more biases than matrices");
        for (int64_t v = 0; v < op_.n_biases; ++v) vector(op_.biases[v], 0, op_.route->slots, "bias");
    }

    const std::vector<Region> &regions_;
    int64_t index_;
    const Operation &op_;
};

}  // namespace

Program::Program(const Operation *operations, int64_t count, const Region *regions, int64_t n_regions)
    : operations_(operations, operations + count) {
    std::vector<Region> sorted(regions, regions + n_regions);
    std::sort(sorted.begin(), sorted.end(), [](const Region &a, const Region &b) { return a.start < b.start; });
    std::unordered_map<const Route *, Route *> copies;
    for (int64_t i = 0; i < count; ++i) {
        Operation &op = operations_[static_cast<size_t>(i)];
        const Check check(sorted, i, op);
        check.want(op.matrices || !op.n_matrices, "has no matrices");
        check.want(op.biases || !op.n_biases, "has no biases");
        check.number(op.n_matrices, 0, "matrices");
        check.number(op.n_biases, 0, "biases");
        if (op.n_matrices) op.matrices = matrices_.emplace_back(op.matrices, op.matrices + op.n_matrices).data();
        if (op.n_biases) op.biases = vectors_.emplace_back(op.biases, op.biases + op.n_biases).data();
        if (op.gain) op.gain = vectors_.emplace_back(op.gain, op.gain + 1).data();
        if (op.route) {
            Route *&copy = copies[op.route];
            op.route = copy = copy ? copy : &routes_.emplace_back(*op.route);
        }
        check.operation();
    }
}

void check_choice(const Route &route) {
    const int64_t choices = route.batch * route.top_k;
    const auto slot = [&](int32_t s) { return 0 <= s && s < route.slots; };
    if (*route.distinct < 0 || *route.distinct > choices || !std::all_of(route.slot, route.slot + choices, slot) ||
        !std::all_of(route.distinct_slot, route.distinct_slot + *route.distinct, slot))
        throw std::invalid_argument("a route's choice is not one of its slots; run the route first");
}

}  // namespace moegauge
