// Launch geometry of the inner optimisation: which kernels a size gets on a device, and with how much of what. Free of
// torch and CUDA calls: _info.plan_inner_opt and its tests use it too.
//
// The pixels of a task are cut into chunks, whose sums over pixels are added up chunk by chunk. Where all chunks of a
// task fit into the device's shared memory, one resident kernel keeps them there and takes all steps
// (inner_opt_resident.cuh); elsewhere there are two launches a step (inner_opt_steps.cuh). Bits depend on the pixels of
// a chunk, so these depend on the device and on the size of a task, and not on how many tasks there are.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "features_launch.h"

namespace fewseg {

constexpr int kStrip = 8;  // pixels that a thread sums side by side: the smallest chunk

// Classes besides the background of which a thread holds sums: the usual 1-way task has its own instantiation.
constexpr int kFewSums = 1;
constexpr int kManySums = 4;

struct InnerOptSize {
  int64_t tasks, classes, channels, pixels;
  int element_bytes, accumulator_bytes;
  bool backward;
};

struct InnerOptPlan {
  bool resident;
  bool staged;            // the chunk of a block is brought to shared memory; always where resident
  int chunk_pixels;       // a multiple of kStrip
  int classes_at_a_time;  // of which a thread holds sums
  int64_t chunks;         // of a task
  int64_t chunks_per_block, blocks_per_task, tasks_at_a_time;
  int64_t shared_bytes;

  LaunchPlan sweep(int64_t tasks) const { return {blocks_per_task, tasks, 1, kThreads, shared_bytes, resident}; }
};

// A chunk in shared memory; chunk.cuh says why there is room for one channel more.
inline int64_t chunk_bytes(const InnerOptSize& size, int chunk_pixels) {
  return (size.channels + 1) * chunk_pixels * size.element_bytes;
}

// What a block takes from shared memory, in this order.
inline int64_t inner_opt_shared_bytes(const InnerOptSize& size, const InnerOptPlan& plan) {
  const int64_t columns = plan.chunks_per_block * plan.chunk_pixels, others = size.classes - 1;
  SharedBytes bytes;
  if (plan.staged) bytes.add<char>(plan.chunks_per_block * chunk_bytes(size, plan.chunk_pixels));
  const auto add = [&](int64_t count) { bytes.add<char>(count * size.accumulator_bytes); };
  add(kWarps * plan.classes_at_a_time * columns);                       // each warp's dots
  for (int i = 0; i <= int(size.backward); ++i) add(others * columns);  // what a pixel knows of a class
  add(kThreads);                                                        // scratch
  if (plan.resident) {
    add(columns);                       // 1 / |q|
    add(size.classes * size.channels);  // p_k - p_0
    add(size.classes);                  // 1 / |P_k|
  }
  return bytes.total();
}

namespace inner_opt_plan {

// The resident kernel with chunks of so many pixels and `chunks_per_block` as many as fit, on one block a
// multiprocessor; not resident where a task does not fit. Says how many tasks fit at a time.
inline InnerOptPlan fit(const InnerOptSize& size, const DeviceLimits& limits, int chunk_pixels, int classes_at_a_time) {
  InnerOptPlan plan{true, true, chunk_pixels, classes_at_a_time, divide_up(size.pixels, chunk_pixels), 1, 1, 0, 0};
  // Since compute capability 8.0 every block costs a kilobyte of its multiprocessor's shared memory more.
  const int64_t available = std::min(limits.shared_per_block, limits.shared_per_multiprocessor - 1024);
  int64_t capacity = available / chunk_bytes(size, chunk_pixels);
  for (; capacity > 0; --capacity) {
    plan.chunks_per_block = capacity;
    if (inner_opt_shared_bytes(size, plan) <= available) break;
  }
  if (capacity == 0) return plan;
  const int64_t blocks = divide_up(plan.chunks, capacity);
  plan.tasks_at_a_time = limits.multiprocessors / blocks;
  return plan;
}

// Two blocks a multiprocessor, so that one computes while the other one waits for its features.
inline InnerOptPlan step_by_step(const InnerOptSize& size, const DeviceLimits& limits, int classes_at_a_time) {
  InnerOptPlan plan{};
  const auto fits = [&](int chunk_pixels, bool staged, int64_t available) {
    const int64_t chunks = divide_up(size.pixels, chunk_pixels);
    plan = {false, staged, chunk_pixels, classes_at_a_time, chunks, 1, chunks, size.tasks, 0};
    plan.shared_bytes = inner_opt_shared_bytes(size, plan);
    return plan.shared_bytes <= available;
  };
  const int64_t half = std::min(limits.shared_per_block, limits.shared_per_multiprocessor / 2 - 1024);
  for (const int chunk_pixels : {32, 24, 16, 8})
    if (fits(chunk_pixels, true, half)) return plan;
  if (!fits(kStrip, true, limits.shared_per_block)) fits(kStrip, false, 0);
  return plan;
}

}  // namespace inner_opt_plan

// The launch refuses a plan that asks for more shared memory than a block can have: that takes thousands of classes.
inline InnerOptPlan plan_inner_opt(const InnerOptSize& size, const DeviceLimits& limits) {
  const int classes_at_a_time = size.classes - 1 <= kFewSums ? kFewSums : kManySums;
  InnerOptPlan best{};
  int64_t fewest = 0;
  // With one class there is nothing to sum. Among the chunks that fit: those that leave a block the fewest pixels when
  // one task has the device to itself, and of these the largest, which have the fewest sums to hand over.
  if (size.classes > 1 && size.channels > 0)
    for (const int chunk_pixels : {32, 24, 16, 8}) {
      InnerOptPlan plan = inner_opt_plan::fit(size, limits, chunk_pixels, classes_at_a_time);
      const int64_t pixels = divide_up(plan.chunks, limits.multiprocessors) * chunk_pixels;
      if (plan.tasks_at_a_time == 0 || (best.resident && pixels >= fewest)) continue;
      best = plan;
      fewest = pixels;
    }
  if (!best.resident) return inner_opt_plan::step_by_step(size, limits, classes_at_a_time);

  // The rounds of a batch get equally many tasks, and the blocks of a task equally many chunks.
  const int64_t tasks = std::max(size.tasks, int64_t(1)), rounds = divide_up(tasks, best.tasks_at_a_time);
  best.tasks_at_a_time = divide_up(tasks, rounds);
  best.chunks_per_block = divide_up(best.chunks, limits.multiprocessors / best.tasks_at_a_time);
  best.blocks_per_task = divide_up(best.chunks, best.chunks_per_block);
  best.shared_bytes = inner_opt_shared_bytes(size, best);
  return best;
}

// The second launch of a step: a block adds up the chunks' parts of some of the (K-1) C sums.
inline LaunchPlan plan_sums(const InnerOptSize& size) {
  const int64_t slices = divide_up((size.classes - 1) * size.channels, kThreads / kStrands);
  const int64_t shared = SharedBytes().add<char>(kThreads * size.accumulator_bytes).add<int>(1).total();
  return {std::max(slices, int64_t(1)), size.tasks, 1, kThreads, shared};
}

template <class A>
LaunchPlan plan_prepare(int64_t tasks) {
  return {1, tasks, 1, kThreads, SharedBytes().add<A>(32).total()};
}

}  // namespace fewseg
