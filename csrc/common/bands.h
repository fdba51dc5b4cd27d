#pragma once

#include <cstdint>

namespace fewseg {

// A banded matrix as the kernels see it: output o is the sum of weight[offset[o] + i] * input[begin[o] + i] over
// 0 <= i < offset[o + 1] - offset[o].
template <class A>
struct Bands {
  int64_t outputs, inputs;
  const int64_t* begin;
  const int64_t* offset;
  const A* weight;
};

}  // namespace fewseg
