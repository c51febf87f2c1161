// C functions of the shared library that Python calls through ctypes.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <exception>
#include <vector>

#include "executor.h"

using namespace moegauge;

#define MOEGAUGE_API extern "C" __attribute__((visibility("default")))

namespace {
const Kernels *best() {
    for (const Kernels *k : {avx512_vnni_kernels(), avx512_kernels(), avx2_kernels(), neon_kernels()})
        if (k) return k;
    return plain_kernels();
}

const Kernels *named(const char *name) {
    if (!*name) return best();
    for (const Kernels *k : {avx512_vnni_kernels(), avx512_kernels(), avx2_kernels(), neon_kernels(), plain_kernels()})
        if (k && !std::strcmp(k->name, name)) return k;
    return nullptr;
}
}  // namespace

// A new executor, or null: no such instruction set here (`isa` empty: the best one), or no threads to be had.
MOEGAUGE_API void *moegauge_open(const char *isa, const int *cpus, int threads) {
    const Kernels *kernels = named(isa);
    if (!kernels) return nullptr;
    try {
        return new Executor(kernels, std::vector<int>(cpus, cpus + threads));
    } catch (const std::exception &) {
        return nullptr;
    }
}

MOEGAUGE_API void moegauge_close(void *executor) { delete static_cast<Executor *>(executor); }

MOEGAUGE_API const char *moegauge_isa(void *executor) { return static_cast<Executor *>(executor)->kernels()->name; }

// Bytes of a vector register: four for each row of a strip (products_4bit.h).
MOEGAUGE_API int moegauge_width(void *executor) { return static_cast<int>(static_cast<Executor *>(executor)->kernels()->width); }

MOEGAUGE_API void moegauge_tune(void *executor, int64_t prefetch, int64_t chunk) {
    static_cast<Executor *>(executor)->tune(prefetch, chunk);
}

// sizeof(Operation), sizeof(Route), sizeof(Matrix), sizeof(Vector): Python compares them with its own.
MOEGAUGE_API void moegauge_sizes(int64_t *out) {
    out[0] = sizeof(Operation), out[1] = sizeof(Route), out[2] = sizeof(Matrix), out[3] = sizeof(Vector);
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

MOEGAUGE_API void moegauge_run(void *executor, const Operation *operations, int64_t count) {
    static_cast<Executor *>(executor)->run(operations, count);
}

MOEGAUGE_API uint64_t moegauge_stream(void *executor, const uint8_t *data, int64_t bytes, int64_t streams, int64_t prefetch) {
    return static_cast<Executor *>(executor)->stream(data, bytes, streams, prefetch);
}

PyMODINIT_FUNC PyInit__cpu(void) {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "Compiled core; called through ctypes.", -1,
                                     nullptr, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&definition);
}
