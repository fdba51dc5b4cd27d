// What gaussian_sample and sample_prototypes share on the CPU: the loops over groups of channels that share their
// random words.
#pragma once

#include <algorithm>

#include "../common/gaussian_arguments.h"
#include "parallel.h"

namespace fewseg {

struct Samples {
  int64_t tasks, samples, channels;
};

// Calls f(task, first channel, number of channels) for every group.
template <class F>
void each_group(const Samples& sizes, const F& f) {
  const int64_t groups = (sizes.channels + kNoiseLanes - 1) / kNoiseLanes;
  constexpr int64_t kWorkOfASample = 60;  // in multiply-adds: logarithms, sines and cosines of doubles
  parallel(sizes.tasks * groups, sizes.tasks * groups * sizes.samples * kWorkOfASample,
           [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) {
               const int64_t first = i % groups * kNoiseLanes;
               f(i / groups, first, std::min<int64_t>(kNoiseLanes, sizes.channels - first));
             }
           });
}

// z [B,L,C]; gaussian_of(task, channel) gives the Gaussian to sample.
template <class A, class F>
void draw_samples(const Samples& sizes, const int64_t* key, const F& gaussian_of, A* z) {
  each_group(sizes, [&](int64_t task, int64_t first, int64_t count) {
    Gaussian channel[kNoiseLanes];
    for (int64_t c = 0; c < count; ++c) channel[c] = gaussian_of(task, first + c);
    for (int64_t l = 0; l < sizes.samples; ++l) {
      const Noise noise = normal_noise(key, task, l, first / kNoiseLanes);
      A* to = z + (task * sizes.samples + l) * sizes.channels + first;
      for (int64_t c = 0; c < count; ++c) to[c] = A(sampled(channel[c], noise.lane[c]));
    }
  });
}

// The gradient of every sampled Gaussian, given to f(task, channel, gradient); standard deviations from
// gaussian_of(task, channel).
template <class A, class F, class G>
void draw_samples_backward(const Samples& sizes, const int64_t* key, const A* gradient, const G& gaussian_of,
                           const F& f) {
  each_group(sizes, [&](int64_t task, int64_t first, int64_t count) {
    Gaussian sum[kNoiseLanes] = {};
    for (int64_t l = 0; l < sizes.samples; ++l) {
      const Noise noise = normal_noise(key, task, l, first / kNoiseLanes);
      const A* dz = gradient + (task * sizes.samples + l) * sizes.channels + first;
      for (int64_t c = 0; c < count; ++c) {
        sum[c].mean += double(dz[c]);
        sum[c].variance += double(dz[c]) * noise.lane[c];
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      sum[c].variance /= 2 * std::sqrt(gaussian_of(task, first + c).variance);
      f(task, first + c, sum[c]);
    }
  });
}

}  // namespace fewseg
