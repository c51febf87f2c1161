// C functions of the shared library that Python calls through ctypes. Called as PyDLL: with the interpreter's lock held;
// where they fail an exception is set.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "executor.h"

using namespace moegauge;

#define MOEGAUGE_API extern "C" __attribute__((visibility("default")))

namespace {
const Kernels *best() {
    for (const Kernels *k : {avx512_vbmi_kernels(), avx512_vnni_kernels(), avx512_kernels(), avx2_kernels(), neon_kernels()})
        if (k) return k;
    return plain_kernels();
}

const Kernels *named(const char *name) {
    if (!*name) return best();
    for (const Kernels *k : {avx512_vbmi_kernels(), avx512_vnni_kernels(), avx512_kernels(), avx2_kernels(), neon_kernels(), plain_kernels()})
        if (k && !std::strcmp(k->name, name)) return k;
    return nullptr;
}

// How often this process has been forked off: a child has none of its parent's threads.
std::atomic<unsigned> forks{0};
#if !defined(_WIN32)
const int watching = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
#endif

// An executor and whose turn it is: Python may call from several threads.
struct Engine {
    Engine(const Kernels *kernels, const std::vector<int> &cpus) : executor(kernels, cpus) {}
    std::mutex turn;
    Executor executor;
};

// What Python holds: an engine, and what it takes to make it anew after a fork.
struct Handle {
    const Kernels *kernels;
    std::vector<int> cpus;
    int64_t prefetch = 0, chunk = 0;  // as tuned; 0 chunk: not yet
    unsigned born = forks.load(std::memory_order_relaxed);
    Engine *engine = nullptr;

    ~Handle() {
        if (!engine || born != forks.load(std::memory_order_relaxed)) return;
        { std::lock_guard<std::mutex> turn(engine->turn); }  // a thread the interpreter left behind may be in a run
        delete engine;
    }
    // In a forked child the parent's engine is left where it is: its threads are not there to be joined, and its locks
    // and buffers may be in any state.
    Engine &ready() {
        const unsigned now = forks.load(std::memory_order_relaxed);
        if (!engine || born != now) {
            engine = nullptr;
            engine = new Engine(kernels, cpus);
            born = now;
            if (chunk) engine->executor.tune(prefetch, chunk);
        }
        return *engine;
    }
};

// Sets the Python exception for the C++ one that is being handled.
void raise() {
    try {
        throw;
    } catch (const std::bad_alloc &) {
        PyErr_NoMemory();
    } catch (const std::invalid_argument &error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::system_error &error) {
        PyErr_SetString(PyExc_OSError, error.code().message().c_str());
    } catch (const std::exception &error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
}

// Signal handlers of Python run in the main thread.
bool in_main_thread() {
#if defined(__linux__)
    return syscall(SYS_gettid) == getpid();
#elif defined(__APPLE__)
    return pthread_main_np();
#else
    return false;
#endif
}

// Runs `work(executor, interrupted)` without the interpreter's lock, one caller at a time. Signal handlers run meanwhile:
// where one raises, the work is called off and its exception stands.
template <class Work>
void without_lock(Handle *handle, Work work) {
    std::exception_ptr error;
    Engine *engine = nullptr;
    try {
        engine = &handle->ready();
    } catch (...) {
        raise();
        return;
    }
    PyThreadState *state = PyEval_SaveThread();
    const auto interrupted = [&state, main = in_main_thread()] {
        if (!main) return false;
        PyEval_RestoreThread(state);
        const bool raised = PyErr_CheckSignals() != 0;
        state = PyEval_SaveThread();
        return raised;
    };
    try {
        std::lock_guard<std::mutex> turn(engine->turn);
        work(engine->executor, interrupted);
    } catch (...) {
        error = std::current_exception();
    }
    PyEval_RestoreThread(state);  // outside of every try: where the interpreter is ending, this ends the thread instead
    if (!error || PyErr_Occurred()) return;
    try {
        std::rethrow_exception(error);
    } catch (...) {
        raise();
    }
}
}  // namespace

// A new executor. LookupError: no such instruction set here (`isa` empty: the best one); OSError: not so many threads.
MOEGAUGE_API void *moegauge_open(const char *isa, const int *cpus, int threads) {
    const Kernels *kernels = named(isa);
    if (!kernels) {
        PyErr_SetString(PyExc_LookupError, isa);
        return nullptr;
    }
    try {
        auto handle = std::unique_ptr<Handle>(new Handle{kernels, std::vector<int>(cpus, cpus + threads)});
        handle->ready();
        return handle.release();
    } catch (...) {
        raise();
        return nullptr;
    }
}

MOEGAUGE_API void moegauge_close(Handle *handle) { delete handle; }

MOEGAUGE_API const char *moegauge_isa(Handle *handle) { return handle->kernels->name; }

// Bytes of a vector register: four for each row of a strip (products_4bit.h).
MOEGAUGE_API int moegauge_width(Handle *handle) { return static_cast<int>(handle->kernels->width); }

MOEGAUGE_API void moegauge_tune(Handle *handle, int64_t prefetch, int64_t chunk) {
    handle->prefetch = prefetch, handle->chunk = chunk;
    without_lock(handle, [&](Executor &executor, const auto &) { executor.tune(prefetch, chunk); });
}

// A program, copied and checked (program.h). ValueError: it would reach outside its regions.
MOEGAUGE_API Program *moegauge_load(const Operation *operations, int64_t count, const Region *regions, int64_t n_regions) {
    try {
        return new Program(operations, count, regions, n_regions);
    } catch (...) {
        raise();
        return nullptr;
    }
}

MOEGAUGE_API void moegauge_unload(Program *program) { delete program; }

// sizeof of every struct Python mirrors, which compares them with its own.
MOEGAUGE_API void moegauge_sizes(int64_t *out) {
    out[0] = sizeof(Operation), out[1] = sizeof(Route), out[2] = sizeof(Matrix), out[3] = sizeof(Vector), out[4] = sizeof(Region);
    out[5] = sizeof(Cut), out[6] = sizeof(Segment);
}

// TRAITS, five numbers a format; `out` has room for `most` formats. Returns how many there are.
MOEGAUGE_API int64_t moegauge_traits(int64_t *out, int64_t most) {
    for (int64_t i = 0; i < FORMATS && i < most; ++i, out += 5) {
        const Traits &t = TRAITS[i];
        out[0] = static_cast<int64_t>(t.element), out[1] = static_cast<int64_t>(t.scale);
        out[2] = t.rows, out[3] = t.columns, out[4] = t.tensor_scale;
    }
    return FORMATS;
}

MOEGAUGE_API void moegauge_run(Handle *handle, const Program *program, int64_t first, int64_t count) {
    const auto size = static_cast<int64_t>(program->operations().size());
    if (first < 0 || count < 0 || count > size - first) {
        PyErr_Format(PyExc_ValueError, "operations %lld to %lld of a program of %lld", static_cast<long long>(first),
                     static_cast<long long>(first) + static_cast<long long>(count), static_cast<long long>(size));
        return;
    }
    without_lock(handle, [&](Executor &executor, const Executor::Interrupted &interrupted) {
        executor.run(*program, first, count, interrupted);
    });
}

// A whole program in parts (Executor::run_cut); the number of segments written to `out`, which has room for `room`.
MOEGAUGE_API int64_t moegauge_run_cut(Handle *handle, const Program *program, Cut *cut, Segment *out, int64_t room) {
    int64_t count = 0;
    without_lock(handle, [&](Executor &executor, const Executor::Interrupted &interrupted) {
        count = executor.run_cut(*program, *cut, out, room, interrupted);
    });
    return count;
}

MOEGAUGE_API uint64_t moegauge_stream(Handle *handle, const uint8_t *data, int64_t bytes, int64_t streams, int64_t prefetch) {
    uint64_t all = 0;
    if (bytes < 0 || bytes % 512) {  // eight streams of cache lines
        PyErr_SetString(PyExc_ValueError, "a stream is a multiple of 512 bytes");
        return all;
    }
    without_lock(handle, [&](Executor &executor, const Executor::Interrupted &interrupted) {
        executor.stream(data, bytes, streams, prefetch, interrupted, all);
    });
    return all;
}

PyMODINIT_FUNC PyInit__cpu(void) {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "Compiled core; called through ctypes.", -1,
                                     nullptr, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&definition);
}
