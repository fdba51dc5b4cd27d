// Sampling of Gaussian prototypes. A thread takes the channels that share their random words: of one sample forward, of
// all samples backward, so that the sums over the samples have one order.
#pragma once

#include "gaussian_aggregate.cuh"

namespace fewseg {

// The Gaussians to sample, as they are: [B,C]. Its like for aggregated ones is DeviceAggregate in
// sample_prototypes.cuh.
template <class A>
struct DeviceGaussians {
  const A *mean, *variance;  // the mean null where only the variance is needed
  int64_t tasks, channels;

  __device__ Gaussian of(int64_t task, int64_t c) const {
    const int64_t i = task * channels + c;
    return {mean ? double(mean[i]) : 0.0, at_least_variance(double(variance[i]))};
  }
};

// Where the gradient of a sampled Gaussian goes: d_mean and d_variance [B,C].
template <class A>
struct GaussianGradient {
  const A* variance;
  A *d_mean, *d_variance;
  int64_t channels;

  __device__ void keep(int64_t task, int64_t c, Gaussian gradient) const {
    const int64_t i = task * channels + c;
    d_mean[i] = A(gradient.mean);
    d_variance[i] = double(variance[i]) < kLeastVariance ? A(0) : A(gradient.variance);
  }
};

// z [B,L,C].
template <class From, class A>
__global__ void gaussian_sample_kernel(From from, int64_t samples, const int64_t* key, A* z) {
  const int64_t groups = (from.channels + kNoiseLanes - 1) / kNoiseLanes;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= from.tasks * samples * groups) return;
  const int64_t group = index % groups, l = index / groups % samples, task = index / groups / samples;
  const Noise noise = normal_noise(key, task, l, group);
  A* to = z + (task * samples + l) * from.channels;
#pragma unroll
  for (int lane = 0; lane < kNoiseLanes; ++lane) {
    const int64_t c = group * kNoiseLanes + lane;
    if (c < from.channels) to[c] = A(sampled(from.of(task, c), noise.lane[lane]));
  }
}

// From the gradient [B,L,C] of the samples that of the Gaussians.
template <class From, class To, class A>
__global__ void gaussian_sample_backward_kernel(From from, int64_t samples, const int64_t* key, const A* gradient,
                                                To to) {
  const int64_t groups = (from.channels + kNoiseLanes - 1) / kNoiseLanes;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= from.tasks * groups) return;
  const int64_t group = index % groups, task = index / groups;
  double of_mean[kNoiseLanes] = {}, of_deviation[kNoiseLanes] = {};
  for (int64_t l = 0; l < samples; ++l) {
    const Noise noise = normal_noise(key, task, l, group);
    const A* dz = gradient + (task * samples + l) * from.channels;
#pragma unroll
    for (int lane = 0; lane < kNoiseLanes; ++lane) {
      const int64_t c = group * kNoiseLanes + lane;
      if (c >= from.channels) continue;
      of_mean[lane] += double(dz[c]);
      of_deviation[lane] += double(dz[c]) * noise.lane[lane];
    }
  }
#pragma unroll
  for (int lane = 0; lane < kNoiseLanes; ++lane) {
    const int64_t c = group * kNoiseLanes + lane;
    if (c < from.channels)
      to.keep(task, c, {of_mean[lane], of_deviation[lane] / (2 * sqrt(from.of(task, c).variance))});
  }
}

}  // namespace fewseg
