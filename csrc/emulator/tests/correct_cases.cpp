// Correct kernels: what they use of CUDA must do what a GPU does, in every order.
#include <thread>

#include "cases.h"

using namespace cases;
using namespace fewseg;

namespace {

__global__ void write_indices(int64_t* out) {
  const int64_t block = blockIdx.x + int64_t(gridDim.x) * (blockIdx.y + int64_t(gridDim.y) * blockIdx.z);
  out[block * blockDim.x + threadIdx.x] += 1000 * block + threadIdx.x + 1'000'000 * (threadIdx.y + threadIdx.z);
}

CASE(indexing) {
  LaunchPlan launch_plan = plan(5, 64);
  launch_plan.grid_y = 3;
  launch_plan.grid_z = 2;
  std::vector<int64_t> out(5 * 3 * 2 * 64);
  launch(write_indices, launch_plan, nullptr, out.data());
  for (int64_t i = 0; i < int64_t(out.size()); ++i) expect_equal(out[i], i / 64 * 1000 + i % 64, "index");
}

// Whoever reads the other end of the block's array must find it written.
__global__ void __launch_bounds__(1024) reverse_block(float* data, int rounds) {
  SharedMemory shared;
  float* even = shared.take<float>(blockDim.x);
  float* odd = shared.take<float>(blockDim.x);
  const unsigned i = threadIdx.x, last = blockDim.x - 1;
  float* mine = data + blockIdx.x * blockDim.x;
  float value = mine[i];
  for (int round = 0; round < rounds; ++round) {
    float* array = round % 2 ? odd : even;
    array[i] = value + 1;
    __syncthreads();
    value = array[last - i];
  }
  mine[i] = value;
}

CASE(barrier) {
  for (const int threads : {32, 96, 256, 1024}) {
    std::vector<float> data(3 * threads);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = float(i);
    launch(reverse_block, plan(3, threads, 2 * shared_bytes<float>(threads)), nullptr, data.data(), 5);
    for (int i = 0; i < 3 * threads; ++i)
      expect_equal(data[i], float(i / threads * threads + threads - 1 - i % threads + 5), "element");
  }
}

__global__ void vote_in_block(int* out) {
  const int i = int(threadIdx.x);
  int result = __syncthreads_count(i % 3 == 0);
  result += 1000 * __syncthreads_or(i == 70) + 2000 * __syncthreads_or(0);
  result += 10000 * __syncthreads_and(1) + 20000 * __syncthreads_and(i != 5);
  out[i] = result;
}

CASE(block_votes) {
  std::vector<int> out(96);
  launch(vote_in_block, plan(1, 96), nullptr, out.data());
  for (const int value : out) expect_equal(value, 32 + 1000 + 10000, "votes");
}

template <class T>
__global__ void shuffle_all(T* out) {
  const unsigned i = threadIdx.x;
  const T value = T(i) + T(100);
  T* row = out + i;
  *row = __shfl_sync(~0u, value, 35);  // wraps around to lane 3
  *(row += blockDim.x) = __shfl_sync(~0u, value, 1, 8);
  *(row += blockDim.x) = __shfl_up_sync(~0u, value, 3);
  *(row += blockDim.x) = __shfl_down_sync(~0u, value, 3, 16);
  *(row += blockDim.x) = __shfl_xor_sync(~0u, value, 5);
  // Each half by itself, a different number of times: the lanes must not get each other's results.
  T sum = value;
  if (i % 32 < 16) {
    for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(0x0000FFFFu, sum, offset);
  } else {
    sum += __shfl_xor_sync(0xFFFF0000u, sum, 1);
  }
  *(row += blockDim.x) = sum;
}

template <class T>
void check_shuffles() {
  const int threads = 64;
  std::vector<T> out(6 * threads);
  launch(shuffle_all<T>, plan(1, threads), nullptr, out.data());
  for (int i = 0; i < threads; ++i) {
    const int warp = i / 32 * 32, lane = i % 32;
    expect_equal(out[i], T(100 + warp + 3), "__shfl_sync");
    expect_equal(out[threads + i], T(100 + warp + lane / 8 * 8 + 1), "__shfl_sync, width 8");
    expect_equal(out[2 * threads + i], T(100 + warp + (lane >= 3 ? lane - 3 : lane)), "__shfl_up_sync");
    expect_equal(out[3 * threads + i], T(100 + warp + (lane % 16 < 13 ? lane + 3 : lane)),
                 "__shfl_down_sync, width 16");
    expect_equal(out[4 * threads + i], T(100 + warp + (lane ^ 5)), "__shfl_xor_sync");
    const int sum = lane < 16 ? 16 * (100 + warp) + 120 : 2 * (100 + warp) + lane + (lane ^ 1);
    expect_equal(out[5 * threads + i], T(sum), "half a warp");
  }
}

CASE(shuffles) {
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<int64_t>();
}

__global__ void vote_in_warp(unsigned* out) {
  const unsigned lane = threadIdx.x % warpSize;
  unsigned result = __ballot_sync(~0u, lane % 2);
  if (lane < 4) {
    result += __ballot_sync(0xFu, lane == 2);
    __syncwarp(0xFu);
    result += 100 * __any_sync(0xFu, lane == 1) + 200 * __any_sync(0xFu, 0);
    result += 1000 * __all_sync(0xFu, lane < 4) + 2000 * __all_sync(0xFu, lane < 3);
  }
  __syncwarp();
  out[threadIdx.x] = result;
}

CASE(votes) {
  std::vector<unsigned> out(64);
  launch(vote_in_warp, plan(1, 64), nullptr, out.data());
  for (unsigned i = 0; i < 64; ++i) expect_equal(out[i], 0xAAAAAAAAu + (i % 32 < 4 ? 4 + 100 + 1000 : 0), "votes");
}

struct Counters {
  int sum;
  unsigned largest, smallest, last, tickets;
  unsigned long long many;
  unsigned bits;
};

__global__ void count(Counters* counters) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&counters->sum, -int(i));
  atomicMax(&counters->largest, i);
  atomicMin(&counters->smallest, i + 7);
  atomicExch(&counters->last, 5u);
  atomicInc(&counters->tickets, 99u);
  atomicAdd(&counters->many, 1ull << 33);
  atomicOr(&counters->bits, 1u << (i % 8));
  unsigned old = *static_cast<volatile unsigned*>(&counters->last);
  for (unsigned seen = ~old; seen != old;) {
    seen = old;
    old = atomicCAS(&counters->last, seen, seen);
  }
}

CASE(atomics) {
  Counters counters{};
  counters.smallest = ~0u;
  launch(count, plan(5, 64), nullptr, &counters);
  expect_equal(counters.sum, -319 * 320 / 2, "atomicAdd");
  expect_equal(counters.largest, 319u, "atomicMax");
  expect_equal(counters.smallest, 7u, "atomicMin");
  expect_equal(counters.last, 5u, "atomicExch and atomicCAS");
  expect_equal(counters.tickets, 20u, "atomicInc");
  expect_equal(counters.many, 320ull << 33, "atomicAdd of 64 bits");
  expect_equal(counters.bits, 0xFFu, "atomicOr");
}

// Sums in a fixed order: lanes, then warps.
__device__ float block_sum(float value, float* per_warp) {
  for (int offset = warpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % warpSize == 0) per_warp[threadIdx.x / warpSize] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / warpSize; ++warp) sum += per_warp[warp];
  return sum;
}

// The last block to finish adds up what all have left in `partials`, and resets the counter for the next launch.
__global__ void sum_by_last_block(const float* values, float* partials, unsigned* finished, float* sum) {
  SharedMemory shared;
  float* per_warp = shared.take<float>(blockDim.x / warpSize);
  int* is_last = shared.take<int>(1);
  const float partial = block_sum(__ldg(values + blockIdx.x * blockDim.x + threadIdx.x), per_warp);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = partial;
    __threadfence();
    *is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*is_last) return;
  const float total = block_sum(threadIdx.x < gridDim.x ? __ldcg(partials + threadIdx.x) : 0.0f, per_warp);
  if (threadIdx.x != 0) return;
  *sum = total;
  *finished = 0;
}

CASE(last_block) {
  const int blocks = 7, threads = 128;
  std::vector<float> values(blocks * threads), partials(blocks), sums(2);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1.0f / float(i + 1);
  unsigned finished = 0;
  const LaunchPlan launch_plan = plan(blocks, threads, SharedBytes().add<float>(threads / 32).add<int>(1).total());
  for (float& sum : sums)
    launch(sum_by_last_block, launch_plan, nullptr, values.data(), partials.data(), &finished, &sum);
  expect_equal(sums[0], sums[1], "the second launch");
  print(sums);  // the same bits in every order
}

// Each step reads what other blocks have written in the step before.
__global__ void rotate_grid(int* from, int* to, int steps) {
  const int count = int(gridDim.x * blockDim.x), i = int(blockIdx.x * blockDim.x + threadIdx.x);
  for (int step = 0; step < steps; ++step) {
    to[i] = from[(i + 70) % count] + 1;
    grid_sync();
    int* swap = from;
    from = to;
    to = swap;
  }
}

CASE(cooperative) {
  const int count = 6 * 64;
  std::vector<int> a(count), b(count);
  for (int i = 0; i < count; ++i) a[i] = i;
  launch(rotate_grid, plan(6, 64, 0, true), nullptr, a.data(), b.data(), 4);
  for (int i = 0; i < count; ++i) expect_equal(a[i], (i + 280) % count + 4, "rotated");
}

__global__ void some_return_early(float* data) {
  const unsigned warp = threadIdx.x / warpSize;
  if (warp == 1) return;
  const float value = data[threadIdx.x];
  data[threadIdx.x] = value + __shfl_xor_sync(~0u, value, 1);
}

struct alignas(16) Four {
  float at[4];
};

// Copies of all sizes, read by other threads after the wait and the barrier.
__global__ void copy_to_shared(const Four* from, float* out) {
  SharedMemory shared;
  Four* array = shared.take<Four>(blockDim.x);
  const unsigned i = threadIdx.x, other = blockDim.x - 1 - i;
  if (i % 2) {
    copy_async(array + i, from + i);
  } else {
    for (int k = 0; k < 4; ++k) copy_async(array[i].at + k, from[i].at + k);
  }
  copies_done();
  __syncthreads();
  out[i] = array[other].at[0] + array[other].at[3];
}

CASE(asynchronous_copies) {
  std::vector<Four> from(96);
  for (int i = 0; i < 96; ++i) from[i] = {{float(i), 0, 0, 0.5f}};
  std::vector<float> out(96);
  launch(copy_to_shared, plan(1, 96, shared_bytes<Four>(96)), nullptr, from.data(), out.data());
  for (int i = 0; i < 96; ++i) expect_equal(out[i], 95.5f - float(i), "copied");
}

CASE(early_return) {
  std::vector<float> data(96, 1.0f);
  launch(some_return_early, plan(1, 96), nullptr, data.data());
  for (int i = 0; i < 96; ++i) expect_equal(data[i], i / 32 == 1 ? 1.0f : 2.0f, "sum of two lanes");
}

CASE(host_threads) {
  std::vector<std::vector<float>> data(4, std::vector<float>(8 * 128));
  std::vector<std::thread> threads;
  for (auto& mine : data)
    threads.emplace_back([&mine] {
      for (int i = 0; i < 10; ++i)
        launch(reverse_block, plan(8, 128, 2 * shared_bytes<float>(128)), nullptr, mine.data(), 10);
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& mine : data)
    for (const float value : mine) expect_equal(value, 100.0f, "element");
}

CASE(half) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    Half back;
    const float value = widen(Half{uint16_t(bits)});
    narrow(value, back);
    if (value == value) expect_equal(unsigned(back.bits), bits, "there and back");
#ifdef __FLT16_MANT_DIG__
    _Float16 compilers;
    std::memcpy(&compilers, &bits, 2);
    if (value == value) expect_equal(value, float(compilers), "widen");
    for (const float nudge : {0.9996f, 0.99975f, 1.00024414f, 1.00048828f, 1.0007f}) {
      narrow(value * nudge, back);
      compilers = _Float16(value * nudge);
      uint16_t expected;
      std::memcpy(&expected, &compilers, 2);
      if (value == value) expect_equal(back.bits, expected, "narrow");
    }
#endif
  }
  expect_equal(widen(Half{0x3C00}), 1.0f, "one");
  expect_equal(widen(Half{0x0001}), 0x1p-24f, "the smallest");
}

CASE(device) {
  const DeviceLimits limits = device_limits();
  std::printf("%d %lld %lld %d %d\n", limits.multiprocessors, (long long)limits.shared_per_block,
              (long long)limits.shared_per_multiprocessor, limits.registers_per_multiprocessor,
              limits.threads_per_multiprocessor);
}

}  // namespace
