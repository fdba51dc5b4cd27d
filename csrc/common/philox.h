// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
// and Box-Muller on top of it. A number depends on its key and counter only, so threads draw in any order, and CPU and
// CUDA draw the same.
#pragma once

#include <cmath>
#include <cstdint>

#include "anywhere.h"

namespace fewseg {

struct Words {
  uint32_t word[4];
};

FEWSEG_ANYWHERE Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * counter.word[0], b = uint64_t(0xCD9E8D57u) * counter.word[2];
    counter = {{uint32_t(b >> 32) ^ counter.word[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ counter.word[3] ^ key1,
                uint32_t(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Two standard normal numbers from two words, each word x standing for (x + 1/2) 2^-32. In double: the largest is 6.7
// standard deviations, and roundings of the double do not show in a float32.
FEWSEG_ANYWHERE void box_muller(uint32_t for_radius, uint32_t for_angle, double& first, double& second) {
  const double radius = sqrt(-2 * log((double(for_radius) + 0.5) * 0x1p-32));
  // The angle as a quadrant and an exact distance, below an eighth of a turn, from its nearer edge: sine and cosine are
  // then accurate also where they are small.
  const uint32_t quadrant = for_angle >> 30;
  const double turn = (double(for_angle & 0x3FFFFFFFu) + 0.5) * 0x1p-32;
  const bool far_edge = turn > 0.125;
  const double distance = far_edge ? 0.25 - turn : turn;
  double sine, cosine;
#ifdef __CUDA_ARCH__
  sincospi(2 * distance, &sine, &cosine);  // sin() would keep a table in local memory for arguments that never come
#else
  constexpr double kTwoPi = 6.283185307179586476925;
  sine = sin(kTwoPi * distance);
  cosine = cos(kTwoPi * distance);
#endif
  if (far_edge != (quadrant % 2 == 1)) {
    const double swap = sine;
    sine = cosine;
    cosine = swap;
  }
  first = quadrant == 1 || quadrant == 2 ? -radius * cosine : radius * cosine;
  second = quadrant >= 2 ? -radius * sine : radius * sine;
}

constexpr int kNoiseLanes = 4;

// The noise of kNoiseLanes neighbouring channels.
struct Noise {
  double lane[kNoiseLanes];
};

// The noise of the channels 4 group .. 4 group + 3 of sample l of task b under key[2].
FEWSEG_ANYWHERE Noise normal_noise(const int64_t* key, int64_t b, int64_t l, int64_t group) {
  const uint64_t low = uint64_t(key[0]);
  const Words words =
      philox({{uint32_t(group), uint32_t(l), uint32_t(b), uint32_t(uint64_t(key[1]))}}, uint32_t(low), low >> 32);
  Noise noise;
  box_muller(words.word[0], words.word[1], noise.lane[0], noise.lane[1]);
  box_muller(words.word[2], words.word[3], noise.lane[2], noise.lane[3]);
  return noise;
}

}  // namespace fewseg
