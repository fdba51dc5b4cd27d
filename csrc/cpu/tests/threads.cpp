// torch's parallel_for on plain threads, for ThreadSanitizer, which knows nothing of OpenMP's barriers and would report
// every piece of work as a race with the one before. FEWSEG_SANITIZE=thread compiles it into libfewseg_ops.so, which
// then calls it in the place of libtorch's.
//
// Always three threads, however few pieces there are: more than the processors of most test machines, and a count that
// divides few sizes evenly.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <thread>
#include <vector>

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, ParallelFunc func, void* ctx) {
  const int64_t pieces = (end - begin + std::max<int64_t>(grain_size, 1) - 1) / std::max<int64_t>(grain_size, 1);
  const int64_t threads = std::min<int64_t>(3, pieces);
  if (threads < 1) return AOTI_TORCH_SUCCESS;
  const int64_t part = (end - begin + threads - 1) / threads;
  std::vector<std::thread> running;
  running.reserve(size_t(threads));
  for (int64_t i = 0; i < threads; ++i)
    running.emplace_back([=] { func(std::min(begin + i * part, end), std::min(begin + (i + 1) * part, end), ctx); });
  for (std::thread& thread : running) thread.join();
  return AOTI_TORCH_SUCCESS;
}
