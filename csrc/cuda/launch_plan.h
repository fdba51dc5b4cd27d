// How a kernel is launched, as plain numbers: made without CUDA calls, so that the emulator launches by the same plan
// and tests can look at it.
#pragma once

#include <cstdint>

namespace fewseg {

struct LaunchPlan {
  int64_t grid_x = 1, grid_y = 1, grid_z = 1;
  int block = 1;             // threads, one-dimensional, a multiple of 32
  int64_t shared_bytes = 0;  // of dynamic shared memory
  bool cooperative = false;  // all blocks at once, so that grid_sync() works

  bool empty() const { return grid_x == 0 || grid_y == 0 || grid_z == 0; }
};

// Adds up the arrays that a kernel takes from SharedMemory, in the same order and with the same alignment.
class SharedBytes {
 public:
  static constexpr int64_t kAlignment = 16;
  static constexpr int64_t rounded(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  template <class T>
  SharedBytes& add(int64_t count) {
    total_ += rounded(count * int64_t(sizeof(T)));
    return *this;
  }
  int64_t total() const { return total_; }

 private:
  int64_t total_ = 0;
};

// What a device can do, queried on a GPU and pretended in the emulator.
struct DeviceLimits {
  int multiprocessors;
  int64_t shared_per_block, shared_per_multiprocessor;
  int registers_per_multiprocessor, threads_per_multiprocessor;
};

constexpr int kStrands = 16;  // of add_parts (reduce.cuh)

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace fewseg
