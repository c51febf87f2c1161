// The CPU executor: every thread walks the same list of operations, with a barrier between phases.
// Python is not entered between operations.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "core.h"
#include "program.h"
#include "threads.h"

namespace moegauge {

// Memory that only grows, aligned for vectors.
class Buffer {
  public:
    ~Buffer();
    void *take(size_t bytes);
    template <class T>
    T *of(size_t count) {
        return static_cast<T *>(take(count * sizeof(T)));
    }

  private:
    void *data_ = nullptr;
    size_t size_ = 0;
};

// An input to prepare: x (normalised with `gain` where given) in the order `format` wants, at `at` in the inputs buffer.
struct Input {
    const float *x;
    int64_t columns, format;
    const Vector *gain;
    size_t at;
};

// Rows [first, last) of a matrix times some inputs.
struct Job {
    Matrix matrix;
    int64_t first, last;
    std::vector<size_t> inputs;   // indices into inputs
    std::vector<float *> outputs;
    std::vector<const void *> x;  // resolved after the inputs buffer has its size
};

struct Chunk {
    size_t job;
    int64_t first, last;
};

class Executor {
  public:
    Executor(const Kernels *kernels, const std::vector<int> &cpus)
        : kernels_(kernels), pool_(cpus), ranges_(cpus.size()), watches_(cpus.size()) {}
    using Interrupted = std::function<bool()>;  // asked now and then by the calling thread; true: leave off and return
    // Operations [first, first + count) of a program; false where it was interrupted.
    bool run(const Program &program, int64_t first, int64_t count, const Interrupted &interrupted);
    // The whole program in parts, a slice of a buffer read behind each: no thread sleeps between. Returns how many
    // segments were written; where `room` is too small the last one takes the rest.
    int64_t run_cut(const Program &program, Cut &cut, Segment *out, int64_t room, const Interrupted &interrupted);
    // Reads `bytes` once with all threads and gives the folded value, so that nothing is optimised away; false where it
    // was interrupted.
    bool stream(const uint8_t *data, int64_t bytes, int64_t streams, int64_t prefetch, const Interrupted &interrupted,
                uint64_t &all);
    int threads() const { return pool_.size(); }
    const Kernels *kernels() const { return kernels_; }
    void tune(int64_t prefetch, int64_t chunk) { prefetch_ = prefetch, chunk_bytes_ = std::max(chunk, SMALLEST_CHUNK); }

  private:
    void one(const Operation &op, int thread);
    void products(const Operation &op, int thread);
    void plan(const Operation &op);
    void plan_experts(const Operation &op);
    void attention(const Operation &op, int thread);
    size_t input(size_t id, const float *x, int64_t columns, int64_t format, const Vector *gain);
    Job &job(const Matrix &matrix, int64_t first, int64_t last);
    void cut();
    void share(size_t first, size_t last);
    void bound();
    void slice(int thread);
    void start(int thread);
    void stop(int thread, int64_t *longest, int64_t *worst);
    void prepare(int thread);
    void multiply(int thread);
    int64_t take(int thread);

    const Kernels *kernels_;
    ThreadPool pool_;
    static constexpr int64_t SMALLEST_CHUNK = 32 << 10;
    int64_t prefetch_ = 8192, chunk_bytes_ = 1 << 18;  // bytes; see docs/kernels.md for how they were chosen
    std::vector<Input> inputs_;
    std::vector<int64_t> known_;  // (id, format) -> index into inputs_, or -1
    std::vector<Job> jobs_;
    size_t jobs_used_ = 0;
    std::vector<Chunk> chunks_;
    size_t input_bytes_ = 0;
    Buffer input_buffer_, sums_, scores_, partial_, ones_;
    std::atomic<int64_t> next_{0};
    struct alignas(64) Range {  // chunks a thread still has to do: first in the high half, end in the low half
        std::atomic<uint64_t> ends{0};
    };
    std::vector<Range> ranges_;

    Cut *cut_ = nullptr;           // while `run_cut` runs
    Segment *segment_ = nullptr;   // the one being filled
    int64_t left_ = 0;             // segments there is room for, this one included
    int64_t passed_ = 0;           // bytes since the last slice
    bool due_ = false;             // whether a slice follows the operation
    std::vector<size_t> bounds_;   // where the parts of a product end, chunks
    std::vector<int64_t> part_bytes_;
    std::atomic<uint64_t> folded_{0};  // of the slices, so that nothing is optimised away
    struct alignas(64) Watch {     // a thread's clocks when a part began, and what it lost of the part
        int64_t wall, processor, lost;
    };
    std::vector<Watch> watches_;
};

// epilogues.cpp: what follows the sums; each handles its share `thread` of `threads`.
void finish(const Operation &op, const Kernels &kernels, const float *sums, int thread, int threads);
void embed(const Operation &op, int64_t lanes, int thread, int threads);
void update_state(const Operation &op, int thread, int threads);
void choose(Route &route, int thread, int threads);
void number_distinct(Route &route);

}  // namespace moegauge
