// Run a step's operations on the thread pool: the phases of each operation, and how they are shared out.
#include "executor.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>

namespace moegauge {
namespace {

int64_t wall_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Processor time of the calling thread; the wall clock where the system keeps none, which loses nothing.
int64_t processor_ns() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    timespec t;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0) return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
#endif
    return wall_ns();
}

// Bytes of a cache or state that an operation without products reads.
int64_t cache_bytes(const Operation &op) {
    if (op.kind == STATE) return op.batch * op.elements * 4;
    if (op.kind != ATTENTION) return 0;
    const int64_t width = op.head_dim + (op.is_mla ? 0 : op.value_dim);
    return op.batch * op.kv_heads * op.length * TRAITS[op.cache_format].row_bytes(width);
}

constexpr int64_t CHUNK = 1 << 20;  // of a stream

}  // namespace

Buffer::~Buffer() { std::free(data_); }

void *Buffer::take(size_t bytes) {
    if (bytes > size_) {
        std::free(data_);
        size_ = (bytes * 5 / 4 + 4095) / 4096 * 4096;
        data_ = std::aligned_alloc(4096, size_);
        if (!data_) {
            size_ = 0;
            throw std::bad_alloc();
        }
    }
    return data_;
}

bool Executor::run(const Program &program, int64_t first, int64_t count, const Interrupted &interrupted) {
    const Operation *operations = program.operations().data() + first;
    return pool_.run(
        [&](int thread) {
            for (int64_t i = 0; i < count; ++i) one(operations[i], thread);
        },
        interrupted);
}

// The time between two marks is that of the threads' work alone: waking them, 18 to 52 us on two Zen 4 cores, is outside.
int64_t Executor::run_cut(const Program &program, Cut &cut, Segment *out, int64_t room, const Interrupted &interrupted) {
    const std::vector<Operation> &operations = program.operations();
    struct Cutting {  // whatever ends the run, the next one is whole
        Cut *&cut;
        ~Cutting() { cut = nullptr; }
    } cutting{cut_};
    cut_ = &cut, segment_ = out, left_ = room, passed_ = 0;
    *out = Segment{};
    pool_.run(
        [&](int thread) {
            pool_.barrier();
            start(thread);
            for (size_t i = 0; i < operations.size(); ++i) {
                one(operations[i], thread);
                if (due_ && i + 1 < operations.size()) slice(thread);
            }
            slice(thread);
        },
        interrupted);
    return segment_ - out;
}

void Executor::start(int thread) {
    Watch &w = watches_[static_cast<size_t>(thread)];
    w.wall = wall_ns(), w.processor = processor_ns();
}

// For thread 0: nanoseconds since the first thread's `start`, and what the worst thread lost of them. Two barriers.
void Executor::stop(int thread, int64_t *longest, int64_t *worst) {
    Watch &w = watches_[static_cast<size_t>(thread)];
    w.wall = wall_ns() - w.wall;
    w.lost = std::max<int64_t>(0, w.wall - (processor_ns() - w.processor));
    pool_.barrier();
    if (thread == 0)
        for (const Watch &one : watches_) *longest = std::max(*longest, one.wall), *worst = std::max(*worst, one.lost);
    pool_.barrier();
}

// The end of a segment, its slice of the buffer, and the beginning of the next. All threads, behind a barrier.
void Executor::slice(int thread) {
    Segment &s = *segment_;  // read by every thread before thread 0 moves on, behind the barriers of `stop`
    stop(thread, &s.step, &s.step_lost);
    const bool reads = cut_->buffer && passed_ > 0;
    const int64_t bytes = reads ? (passed_ + CHUNK - 1) / CHUNK * CHUNK : 0;
    if (thread == 0) s.step_bytes = passed_, s.roof_bytes = bytes, next_.store(0);
    pool_.barrier();
    if (reads) {
        start(thread);
        uint64_t folded = 0;
        for (int64_t done; (done = next_.fetch_add(CHUNK, std::memory_order_relaxed)) < bytes; pool_.go_on())
            folded ^= kernels_->stream(cut_->buffer + (cut_->at + done) % cut_->buffer_bytes, CHUNK, cut_->streams, cut_->prefetch);
        folded_ ^= folded;
        pool_.barrier();
        stop(thread, &s.roof, &s.roof_lost);
        if (thread == 0) cut_->at = (cut_->at + bytes) % cut_->buffer_bytes;
    }
    if (thread == 0) {
        passed_ = 0, --left_, ++segment_;
        if (left_ > 0) *segment_ = Segment{};
    }
    pool_.barrier();
    start(thread);
}

void Executor::one(const Operation &op, int thread) {
    const int n = pool_.size();
    switch (op.kind) {
        case EMBED: embed(op, kernels_->width / 4, thread, n); break;
        case STATE: update_state(op, thread, n); break;
        case ATTENTION: attention(op, thread); break;
        case ROUTE:
            choose(*op.route, thread, n);
            pool_.barrier();
            if (thread == 0) number_distinct(*op.route);
            break;
        default: products(op, thread);
    }
    // Read behind the barrier by every thread, and written again behind one that every thread has come to since.
    if (thread == 0 && cut_) due_ = (passed_ += cache_bytes(op)) >= cut_->bytes && left_ > 1;
    pool_.barrier();
}

// Every product, dense or of experts: four phases, a barrier between each two.
void Executor::products(const Operation &op, int thread) {
    // 1. Plan, one thread: which rows meet which inputs, and chunks of at most 256 KiB, a run of neighbours per thread.
    if (thread == 0) {
        inputs_.clear();
        known_.clear();  // its memory stays; what an operation uses of it is filled anew, not what an earlier one did
        jobs_used_ = 0;
        input_bytes_ = 0;
        if (op.kind == EXPERTS_UP || op.kind == EXPERTS_DOWN)
            plan_experts(op);
        else
            plan(op);
        cut();
    }
    pool_.barrier();
    // 2. Inputs, [batch, columns] float32: normalised where a gain is given, then in the order the weights' format wants.
    prepare(thread);
    pool_.barrier();
    // 3. Stream and multiply: my chunks, then what others have left; sums [batch, rows] or [choices, rows] float32.
    multiply(thread);
    pool_.barrier();
    for (size_t part = 1; part < bounds_.size(); ++part) {  // only in a cut run
        slice(thread);
        if (thread == 0) share(bounds_[part - 1], bounds_[part]), passed_ = part_bytes_[part];
        pool_.barrier();
        multiply(thread);
        pool_.barrier();
    }
    // 4. Epilogue, a share of the columns each: bias, gate, weighted sum, residual; y [batch, width] float32.
    finish(op, *kernels_, static_cast<const float *>(sums_.take(0)), thread, pool_.size());
}

// The prepared input for the id-th vector of an operation in one format, made once: matrices of one operation share them.
size_t Executor::input(size_t id, const float *x, int64_t columns, int64_t format, const Vector *gain) {
    const size_t key = id * static_cast<size_t>(FORMATS) + static_cast<size_t>(format);
    if (key >= known_.size()) known_.resize(key + 1, -1);
    int64_t &seen = known_[key];
    if (seen >= 0 && inputs_[static_cast<size_t>(seen)].x == x && inputs_[static_cast<size_t>(seen)].columns == columns)
        return static_cast<size_t>(seen);
    seen = static_cast<int64_t>(inputs_.size());
    inputs_.push_back({x, columns, format, gain, input_bytes_});
    input_bytes_ += (kernels_->prepared_bytes(format, columns) + 63) / 64 * 64;
    return static_cast<size_t>(seen);
}

// The next job, empty but for its matrix and rows; good until the one after. Jobs keep their memory from operation to
// operation: an absorbed MLA has 128 of them, and making their lists anew took as long as their products.
Job &Executor::job(const Matrix &matrix, int64_t first, int64_t last) {
    if (jobs_used_ == jobs_.size()) jobs_.emplace_back();
    Job &j = jobs_[jobs_used_++];
    j.matrix = matrix, j.first = first, j.last = last;
    j.inputs.clear(), j.outputs.clear(), j.x.clear();
    return j;
}

// PRODUCT and GATED: sums are [batch, rows of all matrices], in order.
void Executor::plan(const Operation &op) {
    int64_t rows = 0;
    for (int64_t m = 0; m < op.n_matrices; ++m) rows += op.matrices[m].rows;
    float *sums = sums_.of<float>(static_cast<size_t>(op.batch * rows));
    int64_t before = 0;
    for (int64_t m = 0; m < op.n_matrices; ++m) {
        const Matrix &matrix = op.matrices[m];
        const int64_t part = matrix.rows / op.blocks;
        for (int64_t h = 0; h < op.blocks; ++h) {
            Job &j = job(matrix, h * part, (h + 1) * part);
            for (int64_t b = 0; b < op.batch; ++b) {
                j.inputs.push_back(input(static_cast<size_t>(h * op.batch + b), op.x.data + b * op.x.pitch + h * matrix.columns,
                                         matrix.columns, matrix.format, op.gain));
                j.outputs.push_back(sums + b * rows + before);
            }
        }
        before += matrix.rows;
    }
}

// EXPERTS_*: sums are [batch * top_k, rows] for each routed matrix, then [batch, rows] for each shared one.
void Executor::plan_experts(const Operation &op) {
    const Route &route = *op.route;
    check_choice(route);
    const bool down = op.kind == EXPERTS_DOWN;
    const int64_t routed = down ? 1 : op.n_matrices - op.accumulate;  // accumulate: shared matrices here
    const int64_t choices = op.batch * op.top_k;
    int64_t total = 0;
    for (int64_t m = 0; m < op.n_matrices; ++m) total += (m < routed ? choices : op.batch) * op.matrices[m].rows;
    float *sums = sums_.of<float>(static_cast<size_t>(total));
    int64_t shared_at = routed ? op.top_k * op.matrices[0].columns : 0;  // EXPERTS_DOWN: where x of the shared experts starts
    for (int64_t m = 0; m < op.n_matrices; ++m) {
        const Matrix &matrix = op.matrices[m];
        if (m < routed) {
            for (int64_t d = 0; d < *route.distinct; ++d) {
                Matrix slot = matrix;
                const int64_t s = route.distinct_slot[d];
                slot.weights += s * matrix.weight_stride;
                slot.scales += s * matrix.scale_stride;
                slot.tensor_scale = reinterpret_cast<const float *>(
                    reinterpret_cast<const char *>(matrix.tensor_scale) + s * matrix.tensor_stride);
                Job &j = job(slot, 0, matrix.rows);
                for (int64_t c = 0; c < choices; ++c) {
                    if (route.index[c] != d) continue;
                    const float *x = op.x.data + c / op.top_k * op.x.pitch + (down ? c % op.top_k * matrix.columns : 0);
                    const int64_t id = down ? c : c / op.top_k;  // going up, a token's choices share its vector
                    j.inputs.push_back(input(static_cast<size_t>(id), x, matrix.columns, matrix.format, op.gain));
                    j.outputs.push_back(sums + c * matrix.rows);
                }
            }
            sums += choices * matrix.rows;
        } else {
            Job &j = job(matrix, 0, matrix.rows);
            for (int64_t b = 0; b < op.batch; ++b) {
                const float *x = op.x.data + b * op.x.pitch + (down ? shared_at : 0);
                const int64_t id = down ? choices + (m - routed) * op.batch + b : b;
                j.inputs.push_back(input(static_cast<size_t>(id), x, matrix.columns, matrix.format, op.gain));
                j.outputs.push_back(sums + b * matrix.rows);
            }
            sums += op.batch * matrix.rows;
            if (down) shared_at += matrix.columns;
        }
    }
}

// Chunks small enough that the last one does not leave the other threads waiting long. Each thread has a run of
// neighbouring chunks, so that what it prefetches past the end of one is the start of the next; what another thread has
// left over is taken from its far end.
void Executor::cut() {
    int64_t bytes = 0;
    for (size_t i = 0; i < jobs_used_; ++i)
        bytes += (jobs_[i].last - jobs_[i].first) * TRAITS[jobs_[i].matrix.format].row_bytes(jobs_[i].matrix.columns);
    const int64_t size = std::clamp<int64_t>(bytes / (16 * pool_.size()), SMALLEST_CHUNK, chunk_bytes_);
    chunks_.clear();
    for (size_t i = 0; i < jobs_used_; ++i) {
        const Job &j = jobs_[i];
        const int64_t row = TRAITS[j.matrix.format].row_bytes(j.matrix.columns);
        const int64_t rows = j.last - j.first, parts = std::max<int64_t>(1, (rows * row + size / 2) / size);
        const int64_t step = std::max<int64_t>(16, ((rows + parts - 1) / parts + 15) / 16 * 16);  // whole strips (products_4bit.h)
        for (int64_t r = j.first; r < j.last; r += step) chunks_.push_back({i, r, std::min(r + step, j.last)});
    }
    char *base = static_cast<char *>(input_buffer_.take(input_bytes_));
    for (size_t n = 0; n < jobs_used_; ++n)
        for (size_t i : jobs_[n].inputs) jobs_[n].x.push_back(base + inputs_[i].at);
    bound();
    share(0, bounds_.front());
}

// Gives chunks [first, last) to the threads, a run of neighbours each.
void Executor::share(size_t first, size_t last) {
    const uint64_t n = last - first, threads = ranges_.size();
    for (uint64_t t = 0; t < threads; ++t)
        ranges_[t].ends.store((first + t * n / threads) << 32 | (first + (t + 1) * n / threads), std::memory_order_relaxed);
}

// Where a product is cut: chunks at which a segment is full and half of one is left; always ends with all chunks. The
// bytes of a part count when it begins.
void Executor::bound() {
    bounds_.clear(), part_bytes_.clear();
    int64_t all = 0, passed = passed_;
    const auto bytes = [&](const Chunk &c) {
        return (c.last - c.first) * TRAITS[jobs_[c.job].matrix.format].row_bytes(jobs_[c.job].matrix.columns);
    };
    if (cut_)
        for (const Chunk &c : chunks_) all += bytes(c);
    int64_t part = 0, segments = left_;
    if (cut_)
        for (size_t i = 0; i < chunks_.size(); ++i) {
            const int64_t b = bytes(chunks_[i]);
            part += b, passed += b, all -= b;
            if (segments > 2 && passed >= cut_->bytes && all >= std::max<int64_t>(1, cut_->bytes / 2)) {
                bounds_.push_back(i + 1), part_bytes_.push_back(part);
                part = passed = 0, --segments;
            }
        }
    bounds_.push_back(chunks_.size()), part_bytes_.push_back(part);
    if (cut_) passed_ += part_bytes_.front();
}

// The next chunk for a thread, or -1.
int64_t Executor::take(int thread) {
    const size_t threads = ranges_.size();
    for (size_t i = 0; i < threads; ++i) {
        std::atomic<uint64_t> &ends = ranges_[(static_cast<size_t>(thread) + i) % threads].ends;
        uint64_t seen = ends.load(std::memory_order_relaxed);
        for (;;) {
            const uint64_t first = seen >> 32, end = seen & 0xFFFFFFFFu;
            if (first >= end) break;
            const uint64_t left = i ? seen - 1 : seen + (uint64_t{1} << 32);
            if (ends.compare_exchange_weak(seen, left, std::memory_order_relaxed))
                return static_cast<int64_t>(i ? end - 1 : first);
        }
    }
    return -1;
}

// Input i belongs to thread i modulo threads.
void Executor::prepare(int thread) {
    thread_local std::vector<float> normalised;
    char *base = static_cast<char *>(input_buffer_.take(0));
    for (size_t i = static_cast<size_t>(thread); i < inputs_.size(); i += static_cast<size_t>(pool_.size())) {
        const Input &in = inputs_[i];
        const float *x = in.x;
        if (in.gain) {
            normalised.resize(static_cast<size_t>(in.columns));
            kernels_->norm(x, in.columns, in.gain->data, in.gain->is_f32, normalised.data());
            x = normalised.data();
        }
        kernels_->prepare(in.format, x, in.columns, base + in.at);
    }
}

void Executor::multiply(int thread) {
    // Which chunks are mine: neighbours, so that a chunk begins where the last one's prefetches ended.
    const uint8_t *expected = nullptr;  // where the last chunk ended: prefetched already
    for (int64_t i; (i = take(thread)) >= 0;) {
        pool_.go_on();
        const Chunk &c = chunks_[static_cast<size_t>(i)];
        const Job &j = jobs_[c.job];
        const int64_t row = TRAITS[j.matrix.format].row_bytes(j.matrix.columns);
        const uint8_t *start = j.matrix.weights + c.first * row;
        if (start != expected)
            for (int64_t b = 0; b < prefetch_; b += 64) __builtin_prefetch(start + b, 0, 3);
        expected = j.matrix.weights + c.last * row;
        // Stream rows [first, last) once for all inputs of the job, four inputs at a time; each row's sum is whole.
        kernels_->rows(j.matrix, c.first, c.last, j.x.data(), static_cast<int64_t>(j.x.size()), j.outputs.data(), prefetch_);
    }
}

bool Executor::stream(const uint8_t *data, int64_t bytes, int64_t streams, int64_t prefetch, const Interrupted &interrupted,
                      uint64_t &all) {
    std::atomic<uint64_t> folded{0};
    next_.store(0);
    const bool whole = pool_.run(
        [&](int) {
            uint64_t mine = 0;
            for (;;) {
                pool_.go_on();
                const int64_t at = next_.fetch_add(CHUNK, std::memory_order_relaxed);
                if (at >= bytes) break;
                mine ^= kernels_->stream(data + at, std::min(CHUNK, bytes - at), streams, prefetch);
            }
            folded ^= mine;
        },
        interrupted);
    all = folded;
    return whole;
}

}  // namespace moegauge
