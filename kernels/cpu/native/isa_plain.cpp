// The kernels in plain C++.
#include "products.h"
#include "vector_plain.h"

namespace moegauge {
const Kernels *plain_kernels() { return Table<Plain>::get(); }
}  // namespace moegauge
