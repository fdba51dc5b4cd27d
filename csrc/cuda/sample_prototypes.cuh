// Sampling of aggregated Gaussian prototypes: the kernels of gaussian_sample.cuh, given Gaussians that are aggregated
// where they are needed.
#pragma once

#include "gaussian_sample.cuh"

namespace fewseg {

template <class A>
struct DeviceAggregate {
  DeviceShots<A> shots;
  int64_t tasks, channels;

  explicit DeviceAggregate(DeviceShots<A> in) : shots(in), tasks(in.tasks), channels(in.channels) {}
  __device__ Gaussian of(int64_t task, int64_t c) const { return aggregate(shots.of(task, c), Weighting()); }
};

// Where the gradient goes: spread over the shots, d_mean and d_variance [B,S,C].
template <class A>
struct ShotsGradient {
  DeviceShots<A> shots;
  A *d_mean, *d_variance;

  __device__ void keep(int64_t task, int64_t c, Gaussian gradient) const {
    const int64_t first = shots.first(task, c);
    aggregate_backward(shots.of(task, c), Weighting(), gradient, d_mean + first, d_variance + first);
  }
};

}  // namespace fewseg
