// Thread pool: one thread pinned to each core, spinning briefly between operations, asleep when idle.
#pragma once
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace moegauge {

// Thrown through a thread's work once a run is called off, by barrier() and go_on().
struct CalledOff {};

class ThreadPool {
  public:
    // One thread per entry of `cpus`; -1 leaves a thread unpinned. Throws std::system_error, and leaves no thread behind,
    // where the system has not so many to give.
    explicit ThreadPool(const std::vector<int> &cpus);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int size() const { return static_cast<int>(threads_.size()); }

    // Run work(thread) on every thread; returns when all are done. The caller sleeps meanwhile, so its own affinity is
    // left alone; every 50 ms it asks `interrupted`, and where that is true calls the run off. Returns whether the work
    // was done to its end. What a thread throws calls the run off too, and is thrown from here.
    bool run(const std::function<void(int)> &work, const std::function<bool()> &interrupted);

    // Wait until every thread of the pool is here. Only inside run().
    void barrier();

    // Leave the work if the run is called off. For loops without barriers that last longer than a few milliseconds.
    void go_on() const {
        if (off_.load(std::memory_order_relaxed)) throw CalledOff{};
    }

  private:
    void loop(int index, int cpu);
    void stop();

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int)> *work_ = nullptr;
    unsigned long generation_ = 0;
    int running_ = 0;
    bool stop_ = false;
    std::exception_ptr error_;  // the first of a run
    alignas(64) std::atomic<bool> off_{false};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned long> phase_{0};
};

}  // namespace moegauge
