// Threads for the CPU kernels: torch's own pool, and no thread at all for work too small to share.
#pragma once

#include <torch/csrc/stable/ops.h>

// Multiply-adds that are worth a thread: waking one costs a few microseconds, in which a core does some 30,000.
#ifndef FEWSEG_WORTH_A_THREAD
#define FEWSEG_WORTH_A_THREAD (1 << 15)
#endif

namespace fewseg {

// Calls f(begin, end) on pieces of 0..count. `work` is the number of multiply-adds of the whole.
template <class F>
inline void parallel(int64_t count, int64_t work, const F& f) {
  constexpr int64_t kWorthAThread = FEWSEG_WORTH_A_THREAD;
  if (count <= 1 || work < 2 * kWorthAThread)
    f(int64_t{0}, count);
  else
    torch::stable::parallel_for(0, count, (count * kWorthAThread + work - 1) / work, f);
}

}  // namespace fewseg
