// Gaussian prototypes, one channel at a time: what the CPU loops and the CUDA kernels have in common (docs/math.md,
// section 4). Everything is double: the sums are short, and CPU and CUDA then agree after the one rounding at the end.
#pragma once

#include "anywhere.h"
#include "philox.h"

namespace fewseg {

// Smaller variances count as this one, and have no gradient.
constexpr double kLeastVariance = 1e-12;

FEWSEG_ANYWHERE double at_least_variance(double variance) {
  return variance < kLeastVariance ? kLeastVariance : variance;  // NaN stays NaN
}

struct Gaussian {
  double mean, variance;
};

// How the shots of a task are weighted: by their precision 1/variance, or all alike.
struct Weighting {
  bool precise_mean = true, precise_variance = true;
};

// The Gaussians of one channel: shot i is at [i * stride].
template <class A>
struct Shots {
  const A* mean;
  const A* variance;
  int64_t count, stride;

  FEWSEG_ANYWHERE double mean_of(int64_t i) const { return double(mean[i * stride]); }
  FEWSEG_ANYWHERE double variance_of(int64_t i) const { return at_least_variance(double(variance[i * stride])); }

  FEWSEG_ANYWHERE double total_precision() const {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += 1 / variance_of(i);
    return total;
  }
  // The weights sum to one. Divided and not multiplied by a reciprocal: a single shot then has weight 1 exactly.
  FEWSEG_ANYWHERE double weight_of(int64_t i, double total_precision, bool precise) const {
    return precise ? 1 / variance_of(i) / total_precision : 1 / double(count);
  }
};

template <class A>
FEWSEG_ANYWHERE Gaussian aggregate(const Shots<A>& shots, Weighting weighting) {
  const double precision = shots.total_precision();
  Gaussian result{0, weighting.precise_variance ? double(shots.count) / precision : 0};
  for (int64_t i = 0; i < shots.count; ++i) {
    result.mean += shots.weight_of(i, precision, weighting.precise_mean) * shots.mean_of(i);
    if (!weighting.precise_variance) result.variance += shots.variance_of(i) / double(shots.count);
  }
  return result;
}

// From the gradient of the aggregated Gaussian, that of every shot; the outputs are laid out like the shots.
template <class A>
FEWSEG_ANYWHERE void aggregate_backward(const Shots<A>& shots, Weighting weighting, Gaussian gradient, A* d_mean,
                                        A* d_variance) {
  const double precision = shots.total_precision(), mean = aggregate(shots, weighting).mean;
  for (int64_t i = 0; i < shots.count; ++i) {
    const int64_t at = i * shots.stride;
    d_mean[at] = A(gradient.mean * shots.weight_of(i, precision, weighting.precise_mean));
    // With p_i = 1/v_i and the weight w_i = p_i / sum p: d mean / d v_i = (mean - mean_i) w_i p_i, and for S / sum p
    // the derivative is S w_i^2.
    const double weight = shots.weight_of(i, precision, true);
    double d = 0;
    if (weighting.precise_mean) d += gradient.mean * (mean - shots.mean_of(i)) * weight / shots.variance_of(i);
    d += gradient.variance *
         (weighting.precise_variance ? double(shots.count) * weight * weight : 1 / double(shots.count));
    d_variance[at] = double(shots.variance[at]) < kLeastVariance ? A(0) : A(d);
  }
}

// A sample, to be rounded once.
FEWSEG_ANYWHERE double sampled(Gaussian gaussian, double noise) {
  return gaussian.mean + sqrt(gaussian.variance) * noise;
}

}  // namespace fewseg
