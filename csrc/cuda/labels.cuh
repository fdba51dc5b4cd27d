// Targets as the kernels read them: int32 classes, -1 where ignored. A label out of range cannot raise without waiting
// for the GPU; it never reaches an index, and its task's weight becomes NaN.
#pragma once

#include "../common/divisor.h"
#include "reduce.cuh"

namespace fewseg {

// Converts [tasks][count] labels and counts each task's valid and wrong ones; counts [tasks][2] must be zero before.
// Integer sums are the same in any order. Grid: parts of a task, tasks.
template <class Label>
__global__ void convert_labels_kernel(const Label* labels, int64_t count, int64_t classes, int64_t ignore_index,
                                      int32_t* converted, int* counts) {
  SharedMemory shared;
  int* scratch = shared.take<int>(kWarp);
  const int64_t x = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, task = blockIdx.y;
  int valid = 0, wrong = 0;
  if (x < count) {
    const int64_t label = int64_t(labels[task * count + x]);
    const bool kept = label != ignore_index;
    wrong = kept && (label < 0 || label >= classes);
    valid = kept && !wrong;
    converted[task * count + x] = valid ? int32_t(label) : -1;
  }
  valid = block_sum(valid, scratch);
  wrong = block_sum(wrong, scratch);
  if (threadIdx.x == 0) {
    if (valid) atomicAdd(counts + task * 2, valid);
    if (wrong) atomicAdd(counts + task * 2 + 1, wrong);
  }
}

// weight[task] = factor / divisor, NaN for a task with a wrong label.

template <class A>
__global__ void task_weights_kernel(const int* counts, int tasks, double factor, Divisor divisor, A* weight) {
  const int task = blockIdx.x * blockDim.x + threadIdx.x;
  if (task >= tasks) return;
  int64_t valid = 1;
  if (divisor == Divisor::task) valid = counts[task * 2];
  if (divisor == Divisor::batch) {
    valid = 0;
    for (int i = 0; i < tasks; ++i) valid += counts[i * 2];
  }
  const double value = factor / double(valid > 1 ? valid : 1);
  weight[task] = A(counts[task * 2 + 1] ? nan("") : value);
}

}  // namespace fewseg
