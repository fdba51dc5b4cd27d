// Aggregation of Gaussian prototypes: one thread per channel of a task, the arithmetic in common/gaussian.h.
#pragma once

#include "../common/gaussian.h"
#include "device.h"

namespace fewseg {

// Means and variances [B,S,C] on the device.
template <class A>
struct DeviceShots {
  const A *mean, *variance;
  int64_t tasks, shots, channels;

  // Index of the first shot of channel c of a task.
  __device__ int64_t first(int64_t task, int64_t c) const { return task * shots * channels + c; }
  __device__ Shots<A> of(int64_t task, int64_t c) const {
    return {mean + first(task, c), variance + first(task, c), shots, channels};
  }
};

template <class A>
__global__ void gaussian_aggregate_kernel(DeviceShots<A> in, Weighting weighting, A* mean, A* variance) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= in.tasks * in.channels) return;
  const Gaussian result = aggregate(in.of(index / in.channels, index % in.channels), weighting);
  mean[index] = A(result.mean);
  variance[index] = A(result.variance);
}

template <class A>
__global__ void gaussian_aggregate_backward_kernel(DeviceShots<A> in, Weighting weighting, const A* gradient_mean,
                                                   const A* gradient_variance, A* d_mean, A* d_variance) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= in.tasks * in.channels) return;
  const int64_t task = index / in.channels, c = index % in.channels, first = in.first(task, c);
  aggregate_backward(in.of(task, c), weighting, {double(gradient_mean[index]), double(gradient_variance[index])},
                     d_mean + first, d_variance + first);
}

}  // namespace fewseg
