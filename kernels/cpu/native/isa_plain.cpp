// The CPU kernels in plain C++, for machines without the other instruction sets.
#include "products.h"
#include "vector_plain.h"

namespace moegauge {
const Kernels *plain_kernels() { return Table<Plain>::get(); }
}  // namespace moegauge
