// Launch geometry of the Gaussian operators.
#pragma once

#include "../common/philox.h"
#include "features_launch.h"

namespace fewseg {

// One thread per group of channels that share their random words, of each of `samples` samples.
inline LaunchPlan plan_noise(int64_t tasks, int64_t samples, int64_t channels) {
  return plan_elements(tasks * samples * divide_up(channels, kNoiseLanes));
}

}  // namespace fewseg
