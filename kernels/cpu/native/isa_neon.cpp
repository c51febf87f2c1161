// The CPU kernels compiled for AArch64, where NEON is always there.
#include "core.h"

#if defined(__aarch64__)
#include "products.h"
#include "vector_neon.h"

namespace moegauge {
const Kernels *neon_kernels() { return Table<Neon>::get(); }
}  // namespace moegauge
#else
namespace moegauge {
const Kernels *neon_kernels() { return nullptr; }
}  // namespace moegauge
#endif
