// Thread pool: one thread pinned to each core, spinning briefly between operations, asleep when idle.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace moegauge {

class ThreadPool {
  public:
    // One thread per entry of `cpus`; -1 leaves a thread unpinned.
    explicit ThreadPool(const std::vector<int> &cpus);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int size() const { return static_cast<int>(threads_.size()); }

    // Run work(thread) on every thread; returns when all are done. The caller sleeps meanwhile, so its own affinity is
    // left alone.
    void run(const std::function<void(int)> &work);

    // Wait until every thread of the pool is here. Only inside run().
    void barrier();

  private:
    void loop(int index, int cpu);

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int)> *work_ = nullptr;
    unsigned long generation_ = 0;
    int running_ = 0;
    bool stop_ = false;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned long> phase_{0};
};

}  // namespace moegauge
