// Launch geometry of the kernels over feature maps (features.cuh).
#pragma once

#include "launch_plan.h"

namespace fewseg {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTilePixels = 32;    // of a block that works on pixels: one per lane
constexpr int kTileChannels = 64;  // of a block of the `combine` kernel
constexpr int kTerms = 32;         // that the `combine` kernel holds in shared memory at a time

// Classes that a kernel keeps in registers at a time: the usual 1-way task has its own instantiation.
constexpr int kFewClasses = 2;
constexpr int kManyClasses = 8;

template <class A>
SharedBytes tile_dots_bytes(int classes_at_a_time) {
  const int64_t rows = classes_at_a_time + 1;  // and the squares
  return SharedBytes().add<A>(kWarps * rows * kTilePixels).template add<A>(rows * kTilePixels);
}

template <class A>
LaunchPlan plan_cosines(int64_t tasks, int64_t pixels, int classes_at_a_time) {
  return {divide_up(pixels, kTilePixels), tasks, 1, kThreads, tile_dots_bytes<A>(classes_at_a_time).total()};
}

template <class A>
LaunchPlan plan_pool(int64_t tasks, int64_t channels, bool channels_last, int classes_at_a_time) {
  const int64_t per_block = channels_last ? 32 : kWarps;
  const int64_t shared = channels_last ? SharedBytes().add<A>(kWarps * classes_at_a_time * 32).total() : 0;
  return {divide_up(channels, per_block), tasks, 1, kThreads, shared};
}

template <class A>
LaunchPlan plan_combine(int64_t tasks, int64_t pixels, int64_t channels) {
  const int64_t shared = SharedBytes().add<A>(kTerms * kTilePixels).template add<A>(kTerms * kTileChannels).total();
  return {divide_up(pixels, kTilePixels), divide_up(channels, kTileChannels), tasks, kThreads, shared};
}

// One thread per element.
inline LaunchPlan plan_elements(int64_t count) {
  return {divide_up(count, kThreads), 1, 1, kThreads, 0};
}

// One block per row, with a scratch for block_sum.
template <class A>
LaunchPlan plan_rows(int64_t rows) {
  return {rows, 1, 1, kThreads, SharedBytes().add<A>(32).total()};
}

}  // namespace fewseg
