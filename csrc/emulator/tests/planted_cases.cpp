// Kernels with a planted bug. Each must be noticed: by a report of the emulator, or by results that are wrong or differ
// between orders.
#include "cases.h"

using namespace cases;
using namespace fewseg;

namespace {

__global__ void unused() {}

// --- wrong or differing results -------------------------------------------------------------------------------------

__global__ void reverse_without_barrier(float* out) {
  SharedMemory shared;
  float* array = shared.take<float>(blockDim.x);
  array[threadIdx.x] = float(threadIdx.x);
  // here __syncthreads() is missing
  out[threadIdx.x] = array[blockDim.x - 1 - threadIdx.x];
}

CASE(removed_barrier) {
  std::vector<float> out(64);
  launch(reverse_without_barrier, plan(1, 64, shared_bytes<float>(64)), nullptr, out.data());
  print(out);
}

// Warps must not look as if they ran in step just because each shuffles before it reads.
__global__ void reduce_without_barrier(float* out) {
  SharedMemory shared;
  float* per_warp = shared.take<float>(blockDim.x / 32);
  if (threadIdx.x % 32 == 0) per_warp[threadIdx.x / 32] = 1;
  // here __syncthreads() is missing
  float value = float(threadIdx.x);
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) value += per_warp[warp];
  out[threadIdx.x] = value;
}

CASE(removed_barrier_behind_shuffles) {
  std::vector<float> out(128);
  launch(reduce_without_barrier, plan(1, 128, shared_bytes<float>(4)), nullptr, out.data());
  print(out);
}

// The array is written again before all have read it.
__global__ void rewrite_without_barrier(float* out, int rounds) {
  SharedMemory shared;
  float* array = shared.take<float>(blockDim.x);
  float value = float(threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    array[threadIdx.x] = value;
    __syncthreads();
    value = array[(threadIdx.x + 1) % blockDim.x] + 1;
    // here __syncthreads() is missing
  }
  out[threadIdx.x] = value;
}

CASE(removed_second_barrier) {
  std::vector<float> out(64);
  launch(rewrite_without_barrier, plan(1, 64, shared_bytes<float>(64)), nullptr, out.data(), 3);
  print(out);
}

__global__ void broadcast_without_warp_barrier(float* out) {
  SharedMemory shared;
  float* box = shared.take<float>(1);
  if (threadIdx.x == 0) *box = 3;
  // here __syncwarp() is missing
  out[threadIdx.x] = *box;
}

CASE(removed_warp_barrier) {
  std::vector<float> out(32);
  launch(broadcast_without_warp_barrier, plan(1, 32, shared_bytes<float>(1)), nullptr, out.data());
  print(out);
}

__global__ void read_other_block(float* data, float* out) {
  data[blockIdx.x * blockDim.x + threadIdx.x] = float(blockIdx.x);
  // here grid_sync() is missing
  out[blockIdx.x * blockDim.x + threadIdx.x] = data[(blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x];
}

CASE(removed_grid_barrier) {
  std::vector<float> data(4 * 32, -1.0f), out(4 * 32);
  launch(read_other_block, plan(4, 32, 0, true), nullptr, data.data(), out.data());
  print(out);
}

// The same as a launch whose blocks nobody promises to run at once.
CASE(block_order) {
  std::vector<float> data(4 * 32, -1.0f), out(4 * 32);
  launch(read_other_block, plan(4, 32), nullptr, data.data(), out.data());
  print(out);
}

// A block counts itself as finished before all its threads have written.
__global__ void count_too_early(float* values, unsigned* finished, float* sum) {
  SharedMemory shared;
  int* is_last = shared.take<int>(1);
  values[blockIdx.x * blockDim.x + threadIdx.x] = 1;
  __threadfence();
  // here __syncthreads() is missing
  if (threadIdx.x == 0) *is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!*is_last || threadIdx.x != 0) return;
  *sum = 0;
  for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) *sum += values[i];
  *finished = 0;
}

CASE(counted_too_early) {
  std::vector<float> values(6 * 128);
  unsigned finished = 0;
  float sum = 0;
  launch(count_too_early, plan(6, 128, shared_bytes<int>(1)), nullptr, values.data(), &finished, &sum);
  expect_equal(sum, 6 * 128.0f, "sum by the last block");
}

__global__ void sum_uninitialised(float* out) {
  SharedMemory shared;
  float* array = shared.take<float>(blockDim.x);
  if (threadIdx.x != 40) array[threadIdx.x] = 1;  // leaves one out
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) sum += array[i];
  out[threadIdx.x] = sum;
}

CASE(uninitialised) {
  std::vector<float> out(64);
  for (int i = 0; i < 2; ++i)  // also where an earlier launch has written
    launch(sum_uninitialised, plan(3, 64, shared_bytes<float>(64)), nullptr, out.data());
  for (const float value : out)
    if (value == value) throw std::logic_error("a sum over uninitialised memory is a number");
}

__global__ void read_before_copied(const float* from, float* out) {
  SharedMemory shared;
  float* array = shared.take<float>(blockDim.x);
  copy_async(array + threadIdx.x, from + threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = array[threadIdx.x ^ 1];
  __syncthreads();
  copies_done();  // too late
}

CASE(copy_read_too_early) {
  std::vector<float> from(64, 1.0f), out(64);
  launch(read_before_copied, plan(1, 64, shared_bytes<float>(64)), nullptr, from.data(), out.data());
  for (const float value : out)
    if (value == value) throw std::logic_error("a copy was there before anybody waited for it");
}

__global__ void finish_without_reset(unsigned* finished, int* last_block_ran) {
  if (threadIdx.x != 0) return;
  if (atomicAdd(finished, 1u) == gridDim.x - 1) *last_block_ran += 1;
  // here *finished = 0 is missing
}

CASE(counter_not_reset) {
  unsigned finished = 0;
  int ran = 0;
  for (int i = 1; i <= 2; ++i) {
    launch(finish_without_reset, plan(5, 32), nullptr, &finished, &ran);
    expect_equal(ran, i, "launches whose last block knew that it was");
  }
}

// --- reports --------------------------------------------------------------------------------------------------------

__global__ void barrier_for_half() {
  if (threadIdx.x < 32) __syncthreads();
}
CASE(divergent_barrier) {
  launch(barrier_for_half, plan(1, 64), nullptr);
}

__global__ void return_before_barrier(int n) {
  if (int(threadIdx.x) >= n) return;
  __syncthreads();
}
CASE(barrier_after_return) {
  launch(return_before_barrier, plan(1, 64), nullptr, 63);
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
CASE(barriers_at_two_places) {
  launch(two_barriers, plan(1, 64), nullptr);
}

__global__ void barrier_and_shuffle(float* out) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);
  }
}
CASE(shuffle_against_barrier) {
  std::vector<float> out(32);
  launch(barrier_and_shuffle, plan(1, 32), nullptr, out.data());
}

__global__ void shuffle_with_mask(unsigned mask, int source, int lanes, float* out) {
  if (int(threadIdx.x) < lanes) out[threadIdx.x] = __shfl_sync(mask, 1.0f, source);
}
void shuffle_masked(unsigned mask, int source, int lanes) {
  std::vector<float> out(32);
  launch(shuffle_with_mask, plan(1, 32), nullptr, mask, source, lanes, out.data());
}
CASE(lane_left_out_of_mask) {
  shuffle_masked(0x7FFFFFFFu, 0, 32);
}
CASE(shuffle_reads_beyond_mask) {
  shuffle_masked(0x0000FFFFu, 20, 16);
}
CASE(lanes_of_mask_have_returned) {
  shuffle_masked(~0u, 0, 31);
}

__global__ void grid_barrier_for_some() {
  if (blockIdx.x != 2) grid_sync();
}
CASE(divergent_grid_barrier) {
  launch(grid_barrier_for_some, plan(4, 32, 0, true), nullptr);
}
CASE(grid_barrier_without_cooperation) {
  launch(grid_barrier_for_some, plan(4, 32), nullptr);
}

__global__ void write_shared(int array, int index) {
  SharedMemory shared;
  float* first = shared.take<float>(10);  // 40 bytes: even the 8 up to the next array are nobody's
  float* second = shared.take<float>(blockDim.x);
  if (threadIdx.x == 5) (array ? second : first)[index] = 1;
}
void write_outside(int array, int index) {
  launch(write_shared, plan(2, 32, SharedBytes().add<float>(10).add<float>(32).total()), nullptr, array, index);
}
CASE(off_by_one) {
  write_outside(1, 32);
}
CASE(off_by_one_between_arrays) {
  write_outside(0, 10);
}
CASE(before_the_start) {
  write_outside(0, -1);
}
CASE(within_bounds) {
  write_outside(0, 9);
}

__global__ void read_shared(float* out, int index) {
  SharedMemory shared;
  float* array = shared.take<float>(blockDim.x);
  array[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = array[threadIdx.x + index];
}
CASE(read_off_by_one) {
  std::vector<float> out(32);
  launch(read_shared, plan(1, 32, shared_bytes<float>(32)), nullptr, out.data(), 1);
  print(out);
}

__global__ void take(int64_t count, int64_t more_in_thread_7) {
  SharedMemory shared;
  shared.take<float>(4);
  shared.take<float>(count + (threadIdx.x == 7 ? more_in_thread_7 : 0));
}
CASE(take_beyond_plan) {
  launch(take, plan(1, 32, SharedBytes().add<float>(4).add<float>(9).total()), nullptr, 13, 0);
}
CASE(takes_differ) {
  launch(take, plan(1, 32, 4096), nullptr, 9, 1);
}
CASE(take_all_of_plan) {
  launch(take, plan(1, 32, 16 + 48), nullptr, 12, 0);
}

template <int kBytes>
__global__ void fill_stack(int* out) {
  volatile char array[kBytes];
  for (int i = 0; i < kBytes; ++i) array[i] = char(i);
  *out += array[*out];
}
template <int kBytes>
void fill_stack_with() {
  int out = 0;
  launch(fill_stack<kBytes>, plan(1, 32), nullptr, &out);
}
CASE(stack_overflow) {
  fill_stack_with<65 * 1024>();
}  // past the end, but not past the canaries
CASE(deep_stack) {
  fill_stack_with<60 * 1024>();
}

__global__ void give_up() {
  if (threadIdx.x == 9) __trap();
}

__global__ void forget_copies(const float* from) {
  SharedMemory shared;
  float* array = shared.take<float>(blockDim.x);
  copy_async(array + threadIdx.x, from + threadIdx.x);
}
CASE(copies_never_waited_for) {
  const std::vector<float> from(32);
  launch(forget_copies, plan(1, 32, shared_bytes<float>(32)), nullptr, from.data());
}

__global__ void copy_misaligned(const double* from) {
  SharedMemory shared;
  char* array = shared.take<char>(16);
  if (threadIdx.x == 0) copy_async(reinterpret_cast<double*>(array + 4), from);
  copies_done();
}
CASE(misaligned_copy) {
  const double from = 1;
  launch(copy_misaligned, plan(1, 32, 16), nullptr, &from);
}
CASE(trap) {
  launch(give_up, plan(1, 32), nullptr);
}

__global__ void throw_in_kernel() {
  if (threadIdx.x == 9) throw std::runtime_error("thrown by the kernel");
}
CASE(exception) {
  launch(throw_in_kernel, plan(1, 32), nullptr);
}

__global__ void launch_in_kernel() {
  launch(unused, plan(1, 32), nullptr);
}
CASE(nested_launch) {
  launch(launch_in_kernel, plan(1, 32), nullptr);
}

CASE(block_of_48) {
  launch(unused, plan(1, 48), nullptr);
}
CASE(block_of_2048) {
  launch(unused, plan(1, 2048), nullptr);
}
CASE(empty_grid) {
  launch(unused, plan(0, 32), nullptr);
}
CASE(too_much_shared_memory) {
  launch(unused, plan(1, 32, 65 * 1024), nullptr);
}
CASE(too_many_cooperative_threads) {
  launch(unused, plan(9, 1024, 0, true), nullptr);
}
CASE(too_much_cooperative_shared_memory) {
  launch(unused, plan(5, 32, 60 * 1024, true), nullptr);
}
CASE(as_many_as_fit) {
  launch(unused, plan(4 * 2, 1024, 49 * 1024, true), nullptr);
}

// A failed launch leaves threads in the middle of the kernel; the next one must not meet them.
CASE(launch_after_failure) {
  int reports = 0;
  for (int i = 0; i < 3; ++i) {
    try {
      launch(barrier_for_half, plan(1, 64), nullptr);
    } catch (const std::runtime_error&) {
      ++reports;
    }
    launch(return_before_barrier, plan(2, 128), nullptr, 128);
  }
  expect_equal(reports, 3, "reports");
}

}  // namespace
