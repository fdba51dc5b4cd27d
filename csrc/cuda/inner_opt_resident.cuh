// The inner optimisation in one cooperative launch: each block brings its chunks of a task to shared memory once, and
// all steps are taken there. Between the stages of a step the whole grid waits, twice a step: for the chunks' parts,
// and for their sums. The step itself every block takes for itself, with the same numbers; the first block of a task
// writes down what the caller needs. Grid: blocks of a task, tasks; all at once on the device (plan_inner_opt).
#pragma once

#include "inner_opt.cuh"

namespace fewseg {

// A block's share of stage 2: the sums over all chunks of some of the (K-1) C numbers.
template <class A>
__device__ void add_share(const A* parts, int64_t chunks, int64_t width, A* sums, A* scratch) {
  constexpr int64_t kColumns = kThreads / kStrands;
  const int64_t share = (width + kColumns * gridDim.x - 1) / (kColumns * gridDim.x) * kColumns;
  const int64_t begin = blockIdx.x * share, end = begin + share < width ? begin + share : width;
  add_parts(parts, chunks, width, begin, end, sums, scratch);
}

// trajectory [T+1][K][C] per task holds P^0 and receives P^1..P^T, h [T+1][K][C] the sums; cosine [T][K-1][N], unless
// null, d. parts [tasks of the grid][chunks][K-1][C].
template <int kHeld, class S, class A>
__global__ void __launch_bounds__(kThreads, 1)
    resident_descend_kernel(Features<S> f, Descent<A> descent, Cut cut, int steps, A* trajectory, A* h, A* cosine,
                            A* parts) {
  SharedMemory shared;
  const int64_t task = blockIdx.y, C = f.channels, N = f.pixels;
  const Block<true, kHeld, S, A> block(shared, f, task, blockIdx.x, cut, descent.classes, false);
  A* inverse_norm = shared.take<A>(block.columns);
  A* vectors = shared.take<A>(descent.classes * C);
  A* prototype_inverse_norm = shared.take<A>(descent.classes);
  const int64_t size = descent.classes * C, width = block.others * C;
  const int64_t chunks = (N + cut.chunk_pixels - 1) / cut.chunk_pixels;
  trajectory += task * (steps + 1) * size;
  h += task * (steps + 1) * size;
  parts += task * chunks * width;

  block.load();
  block.norms(inverse_norm);
  for (int64_t i = threadIdx.x; i < C; i += blockDim.x)
    for (int k = 0; k < descent.classes; ++k) vectors[k * C + i] = trajectory[k * C + i];
  normalise(descent.classes, C, vectors, prototype_inverse_norm, block.scratch);
  for (int i = 0; i < steps; ++i) {
    A* saved = cosine ? cosine + (task * steps + i) * block.others * N : nullptr;
    descend_pixels(block, descent, vectors + C, inverse_norm, saved, parts);
    grid_sync();  // the parts of all chunks
    add_share(parts, chunks, width, h + i * size + C, block.scratch);
    grid_sync();  // the sums of all channels; and nobody needs the parts any more
    take_step(descent, task, C, trajectory + i * size, h + i * size, blockIdx.x == 0, trajectory + (i + 1) * size,
              vectors, prototype_inverse_norm, block.scratch);
  }
}

// The same backwards, from dLoss/dP^T, which `v_even` or `v_odd` [K][C] holds as T is even or odd; dLoss/dP^0 is left
// in v_even. trajectory and h [T][K][C], cosine [T][K-1][N]; sums [tasks of the grid][K-1][C]. coefficient
// [T][2(K-1)][N], basis [T][2(K-1)][C] and own [N], which must be zero, collect what dq needs, or are null.
template <int kHeld, class S, class A>
__global__ void __launch_bounds__(kThreads, 1)
    resident_ascend_kernel(Features<S> f, Descent<A> descent, Cut cut, int steps, const A* trajectory, const A* h,
                           const A* cosine, A* v_even, A* v_odd, A* parts, A* sums, A* coefficient, A* basis, A* own) {
  SharedMemory shared;
  const int64_t task = blockIdx.y, C = f.channels, N = f.pixels;
  const Block<true, kHeld, S, A> block(shared, f, task, blockIdx.x, cut, descent.classes, true);
  A* inverse_norm = shared.take<A>(block.columns);
  A* vectors = shared.take<A>(descent.classes * C);
  A* prototype_inverse_norm = shared.take<A>(descent.classes);
  const int64_t size = descent.classes * C, width = block.others * C, terms = 2 * block.others;
  const int64_t chunks = (N + cut.chunk_pixels - 1) / cut.chunk_pixels;
  trajectory += task * steps * size;
  h += task * steps * size;
  v_even += task * size;
  v_odd += task * size;
  parts += task * chunks * width;
  sums += task * width;

  block.load();
  block.norms(inverse_norm);
  for (int64_t i = threadIdx.x; i < C; i += blockDim.x)
    for (int k = 0; k < descent.classes; ++k) vectors[k * C + i] = (steps % 2 ? v_odd : v_even)[k * C + i];
  set_directions(descent.classes, C, trajectory + (steps - 1) * size, vectors, prototype_inverse_norm, block.scratch);
  for (int i = steps - 1; i >= 0; --i) {
    const Collected<A> collected{coefficient ? coefficient + (task * steps + i) * terms * N : nullptr,
                                 basis ? basis + (task * steps + i) * terms * C : nullptr,
                                 own ? own + task * N : nullptr};
    ascend_pixels(block, descent, vectors + C, inverse_norm, cosine + (task * steps + i) * block.others * N, collected,
                  parts);
    grid_sync();  // the parts of all chunks
    add_share(parts, chunks, width, sums, block.scratch);
    grid_sync();  // the sums of all channels; and nobody needs the parts any more
    step_back(descent, task, C, trajectory + i * size, i > 0 ? trajectory + (i - 1) * size : nullptr, h + i * size,
              sums, i % 2 ? v_even : v_odd, blockIdx.x == 0, i % 2 ? v_odd : v_even, collected.basis, vectors,
              prototype_inverse_norm, block.scratch);
  }
}

}  // namespace fewseg
