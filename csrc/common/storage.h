// The element types that the kernels take, free of torch so that every instruction set (and the CUDA emulator) can
// compile them: storage types in memory, and for each the type that sums are kept in.
#pragma once

#include <cstdint>

namespace fewseg {

struct BFloat16 {
  std::uint16_t bits;
};

struct Half {
  std::uint16_t bits;
};

template <class Storage>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class Storage>
using Accumulator = typename AccumulatorOf<Storage>::type;

}  // namespace fewseg
