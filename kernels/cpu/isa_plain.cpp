// The kernels in plain C++.
#include "rows.h"
#include "vector_plain.h"

namespace moegauge {
const Kernels *plain_kernels() { return Table<Plain>::get(); }
}  // namespace moegauge
