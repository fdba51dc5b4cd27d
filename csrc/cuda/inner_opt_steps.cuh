// The inner optimisation in two launches a step, for what does not fit into the device's shared memory: the first takes
// stage 1 of inner_opt.cuh with a block for each chunk, the second adds up the chunks, and the last of its blocks takes
// the step. The bits are those of the resident kernel with the same chunks.
#pragma once

#include "inner_opt.cuh"

namespace fewseg {

// What the launches of one call hand on, per task.
template <class A>
struct DescentState {
  A* vectors;                 // [K][C], as normalise or set_directions leave them
  A* prototype_inverse_norm;  // [K]
  A* inverse_norm;            // [N]
  A* parts;                   // [chunks][K-1][C]
  A* sums;                    // [K-1][C], for the backward
  int* arrived;               // blocks that are done, 0 between launches
};

// inverse_norm = 1/|q|. Grid: chunks, tasks.
template <bool kStaged, class S, class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 1 : 2)
    chunk_norms_kernel(Features<S> f, DescentState<A> state, Cut cut, int classes, bool backward) {
  SharedMemory shared;
  const Block<kStaged, 1, S, A> block(shared, f, blockIdx.y, blockIdx.x, cut, classes, backward);
  block.load();
  block.norms(state.inverse_norm + block.task * f.pixels + block.first());
}

// What the first step needs from P^0, or with v what the first step back needs from P^{T-1}. Grid: 1, tasks.
template <class A>
__global__ void prepare_kernel(DescentState<A> state, int classes, int64_t C, const A* prototypes, int64_t task_stride,
                               const A* v) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kWarp);
  const int64_t task = blockIdx.y, size = classes * C;
  prototypes += task * task_stride;
  A* vectors = state.vectors + task * size;
  A* inverse_norm = state.prototype_inverse_norm + task * classes;
  for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
    for (int k = 0; k < classes; ++k) vectors[k * C + c] = v ? v[task * size + k * C + c] : prototypes[k * C + c];
  if (v)
    set_directions(classes, C, prototypes, vectors, inverse_norm, scratch);
  else
    normalise(classes, C, vectors, inverse_norm, scratch);
}

// Stage 1 forward; cosine [K-1][N], cosine_stride apart, may be null. Grid: chunks, tasks.
template <bool kStaged, int kHeld, class S, class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 1 : 2)
    descend_kernel(Features<S> f, DescentState<A> state, Descent<A> descent, Cut cut, A* cosine,
                   int64_t cosine_stride) {
  SharedMemory shared;
  const int64_t task = blockIdx.y, C = f.channels;
  const Block<kStaged, kHeld, S, A> block(shared, f, task, blockIdx.x, cut, descent.classes, false);
  block.load();
  descend_pixels(block, descent, state.vectors + (task * descent.classes + 1) * C,
                 state.inverse_norm + task * f.pixels + block.first(), cosine ? cosine + task * cosine_stride : cosine,
                 state.parts + task * gridDim.x * block.others * C);
}

// Stages 2 and 3 forward: P^i -> P^{i+1} (from -> to) with h^i, all task_stride apart. Grid: slices of the sums, tasks.
template <class A>
__global__ void take_step_kernel(DescentState<A> state, Descent<A> descent, int64_t C, int64_t chunks, const A* from,
                                 A* to, A* h, int64_t task_stride) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kThreads);
  int* flag = shared.take<int>(1);
  const int64_t task = blockIdx.y, width = (descent.classes - 1) * C, begin = blockIdx.x * (kThreads / kStrands);
  const int64_t end = begin + kThreads / kStrands;
  h += task * task_stride;
  add_parts(state.parts + task * chunks * width, chunks, width, begin, end < width ? end : width, h + C, scratch);
  if (!is_last_block(state.arrived + task, gridDim.x, flag)) return;
  take_step(descent, task, C, from + task * task_stride, h, true, to + task * task_stride,
            state.vectors + task * descent.classes * C, state.prototype_inverse_norm + task * descent.classes, scratch);
}

// Stage 1 back. cosine [K-1][N] is cosine_stride apart, the coefficients and the basis are those of one step out of
// `steps`. Grid: chunks, tasks.
template <bool kStaged, int kHeld, class S, class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 1 : 2)
    ascend_kernel(Features<S> f, DescentState<A> state, Descent<A> descent, Cut cut, const A* cosine,
                  int64_t cosine_stride, int64_t steps, Collected<A> collected) {
  SharedMemory shared;
  const int64_t task = blockIdx.y, C = f.channels;
  const Block<kStaged, kHeld, S, A> block(shared, f, task, blockIdx.x, cut, descent.classes, true);
  if (collected.coefficient) collected.coefficient += task * steps * 2 * block.others * f.pixels;
  if (collected.own) collected.own += task * f.pixels;
  block.load();
  ascend_pixels(block, descent, state.vectors + (task * descent.classes + 1) * C,
                state.inverse_norm + task * f.pixels + block.first(), cosine + task * cosine_stride, collected,
                state.parts + task * gridDim.x * block.others * C);
}

// Stages 2 and 3 back, at P^i: v -> to, [K][C] per task; `previous` is null at i = 0. P and h are task_stride apart.
// Grid: slices of the sums, tasks.
template <class A>
__global__ void step_back_kernel(DescentState<A> state, Descent<A> descent, int64_t C, int64_t chunks,
                                 const A* prototypes, const A* previous, const A* h, int64_t task_stride, int64_t steps,
                                 const A* v, A* to, A* basis) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kThreads);
  int* flag = shared.take<int>(1);
  const int64_t task = blockIdx.y, width = (descent.classes - 1) * C, begin = blockIdx.x * (kThreads / kStrands);
  const int64_t end = begin + kThreads / kStrands, size = descent.classes * C;
  A* sums = state.sums + task * width;
  add_parts(state.parts + task * chunks * width, chunks, width, begin, end < width ? end : width, sums, scratch);
  if (!is_last_block(state.arrived + task, gridDim.x, flag)) return;
  step_back(descent, task, C, prototypes + task * task_stride, previous ? previous + task * task_stride : nullptr,
            h + task * task_stride, sums, v + task * size, true, to + task * size,
            basis ? basis + task * steps * 2 * width : nullptr, state.vectors + task * size,
            state.prototype_inverse_norm + task * descent.classes, scratch);
}

}  // namespace fewseg
