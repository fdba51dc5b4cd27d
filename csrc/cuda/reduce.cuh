// Sums whose order never changes, and the hand-over from many blocks to the last one.
#pragma once

#include "device.h"

namespace fewseg {

// The sum over a warp, in every lane. A butterfly adds the same pairs in every run.
template <class A>
__device__ inline A warp_sum(A value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// The sum over a block, in every thread; scratch [kWarp]. All threads of the block must call it.
template <class A>
__device__ inline A block_sum(A value, A* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  value = warp_sum(value);
  __syncthreads();  // the sum before this one may still be being read
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  A total = 0;
  for (int i = 0; i < warps; ++i) total += scratch[i];
  return total;
}

// out[i] = the sum over j < count of parts[j][i], for begin <= i < end. A thread adds up every kStrands-th part, then
// the strands of an i are added in order: an order that depends on `count` alone, whoever does it. scratch
// [blockDim.x]. All threads of the block must call it.
template <class A>
__device__ inline void add_parts(const A* parts, int64_t count, int64_t width, int64_t begin, int64_t end, A* out,
                                 A* scratch) {
  const int columns = int(blockDim.x) / kStrands, column = int(threadIdx.x) % columns,
            strand = int(threadIdx.x) / columns;
  for (int64_t first = begin; first < end; first += columns) {
    const int64_t i = first + column;
    A total = 0;
    if (i < end) {
#pragma unroll 8  // so many loads in flight
      for (int64_t j = strand; j < count; j += kStrands) total += parts[j * width + i];
    }
    scratch[threadIdx.x] = total;
    __syncthreads();
    // Not by the warp that counts in is_last_block, so that a test can notice if that did not wait for it.
    if (strand == kStrands - 1 && i < end) {
      total = 0;
      for (int s = 0; s < kStrands; ++s) total += scratch[s * columns + column];
      out[i] = total;
    }
    if (first + columns < end) __syncthreads();  // the next columns overwrite the strands
  }
}

// True in all threads of the block that arrives last of `blocks`; it sees what the others wrote to global memory before
// they called this. The counter is back at zero for the next launch. `flag` is one int of shared memory.
__device__ inline bool is_last_block(int* counter, int blocks, int* flag) {
  // Release: every thread's writes become visible to the whole device before this block is counted. The barrier after
  // the fence makes sure that no thread's writes come after the count.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *flag = atomicAdd(counter, 1) == blocks - 1;
    if (*flag) *counter = 0;
  }
  __syncthreads();
  // Acquire: what this block reads from now on is not older than the count that it saw.
  if (*flag) __threadfence();
  return *flag != 0;
}

// 1/|v| from |v|^2, and 0 where |v| <= 1e-12 (docs/math.md, section 0). Written so that NaN stays NaN, and so that a
// square that has overflowed is NaN: as 1/inf it would pass for a vector without direction.
template <class A>
__device__ inline A inverse_root(A square) {
  return square <= A(1e-12) * A(1e-12) ? A(0) : sqrt(square) / square;
}

}  // namespace fewseg
