// A step's operations as the core keeps them: a copy, every address in it proven to lie in memory it was given.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "core.h"

namespace moegauge {

// Memory a program may read and, where `writable`, write: a register, a pool of the arena, the arrays of a route.
struct Region {
    const uint8_t *start;
    int64_t bytes, writable;
};

class Program {
  public:
    // Copies `count` operations with their matrices, vectors and routes, so that what Python does to its records later
    // changes nothing. Throws std::invalid_argument, naming operation and field, where one would reach outside the
    // regions, or where widths do not fit each other so that it would reach outside a buffer of the executor.
    Program(const Operation *operations, int64_t count, const Region *regions, int64_t n_regions);

    const std::vector<Operation> &operations() const { return operations_; }

  private:
    std::vector<Operation> operations_;
    std::deque<std::vector<Matrix>> matrices_;
    std::deque<std::vector<Vector>> vectors_;
    std::deque<Route> routes_;
};

// What a route chose is data that Python can write to: throws std::invalid_argument where it is no choice of slots.
void check_choice(const Route &route);

}  // namespace moegauge
