// Launch geometry of tiled_conv2d.
#pragma once

#include "features_launch.h"

namespace fewseg {

constexpr int kElementsPerThread = 8;  // of the sweep that writes the result

// Pieces of a sample's O x h x w numbers; the classes of all rows and columns in shared memory.
inline LaunchPlan plan_add_table(int64_t samples, int64_t channels, int64_t h, int64_t w) {
  const int64_t shared = SharedBytes().add<int>(h).add<int>(w).total();
  return {divide_up(channels * h * w, kThreads * kElementsPerThread), samples, 1, kThreads, shared};
}

// One block per entry of the table; channels-last, 32 of them at a time.
template <class A>
LaunchPlan plan_sum_classes(int64_t entries, int64_t channels, bool channels_last) {
  if (!channels_last) return {entries, channels, 1, kThreads, SharedBytes().add<A>(32).total()};
  return {entries, divide_up(channels, 32), 1, kThreads, SharedBytes().add<A>(kWarps * 32).total()};
}

}  // namespace fewseg
