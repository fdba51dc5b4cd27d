// Launch geometry of the inner optimisation (inner_opt.cuh).
#pragma once

#include "features_launch.h"

namespace fewseg {

// A sweep: one block per tile of pixels and task. `others` = K - 1 classes have scalars per pixel in shared memory.
template <class A>
LaunchPlan plan_sweep(int64_t tasks, int64_t pixels, int64_t others, int classes_at_a_time, int scalars) {
  const int64_t rows = classes_at_a_time + 1;
  const SharedBytes bytes = SharedBytes()
                                .add<A>(kWarps * rows * kTilePixels)
                                .template add<A>(rows * kTilePixels)
                                .template add<A>(scalars * others * kTilePixels)
                                .template add<A>(32)
                                .template add<int>(1);
  return {divide_up(pixels, kTilePixels), tasks, 1, kThreads, bytes.total()};
}

}  // namespace fewseg
