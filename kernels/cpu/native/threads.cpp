// Start, pin, wake and stop the thread pool; its barrier.
#include "threads.h"

#include <chrono>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace moegauge {
namespace {

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void pin([[maybe_unused]] int cpu) {
#if defined(__linux__)
    if (cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // a refusal leaves the thread unpinned, which is allowed
#endif
}

}  // namespace

ThreadPool::ThreadPool(const std::vector<int> &cpus) {
    threads_.reserve(cpus.size());
    try {
        for (size_t i = 0; i < cpus.size(); ++i)
            threads_.emplace_back([this, i, cpu = cpus[i]] { loop(static_cast<int>(i), cpu); });
    } catch (...) {  // a std::thread that is not joined ends the process
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto &thread : threads_) thread.join();
}

bool ThreadPool::run(const std::function<void(int)> &work, const std::function<bool()> &interrupted) {
    std::unique_lock<std::mutex> lock(mutex_);
    off_.store(false, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);  // threads that left a run called off did not take themselves off
    bool whole = true;
    work_ = &work;
    running_ = size();
    ++generation_;
    wake_.notify_all();
    while (!done_.wait_for(lock, std::chrono::milliseconds(50), [this] { return running_ == 0; })) {
        if (!whole) continue;
        lock.unlock();
        whole = !interrupted();
        if (!whole) off_.store(true, std::memory_order_relaxed);
        lock.lock();
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return whole;
}

void ThreadPool::loop(int index, int cpu) {
    pin(cpu);
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() & ~0x8040u);  // subnormals are values here: neither flushed nor read as zero
#endif
    unsigned long seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
        if (stop_) return;
        seen = generation_;
        lock.unlock();
        std::exception_ptr error;
        try {
            (*work_)(index);
        } catch (const CalledOff &) {
        } catch (...) {
            error = std::current_exception();
            off_.store(true, std::memory_order_relaxed);
        }
        lock.lock();
        if (error && !error_) error_ = error;
        if (--running_ == 0) done_.notify_one();
    }
}

void ThreadPool::barrier() {
    go_on();
    const unsigned long phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    // 4,000 pauses are some 50 us: longer than any small operation takes. After that another process may want the core.
    for (int spin = 0; phase_.load(std::memory_order_acquire) == phase; ++spin) {
        go_on();
        if (spin < 4000)
            relax();
        else
            std::this_thread::yield();
    }
}

}  // namespace moegauge
