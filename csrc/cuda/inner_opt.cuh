// The inner optimisation, one launch per step. A block takes a tile of 32 pixels: dots with the K-1 differences,
// softmax, and the tile's part of the sums h_k (or B_k), for which it reads its features a second time, from the L2
// cache. The block of a task that comes last adds the parts up in order and takes the step, so the next launch finds
// new prototypes. Symbols as in docs/math.md, section 3.
#pragma once

#include "features.cuh"
#include "inner_opt_launch.h"

namespace fewseg {

// What the launches of one call hand on, per task: [K][C] vectors, and the tiles' partial sums.
template <class A>
struct DescentState {
  A *unit, *prototype_inverse_norm;  // p_k [K][C], 1/|P_k| [K]
  A* difference;                     // p_k - p_0 [K-1][C]
  A* direction;                      // u_k - u_0 [K-1][C]; backward only
  A* partial;                        // [tiles][K-1][C]
  A* sums;                           // h or B [K][C]
  int* arrived;                      // blocks that are done, 0 between launches
  int classes;
  int64_t channels;
};

template <class A>
struct Descent {
  A scale, lr;
  const A* weight;        // [tasks] alpha / V
  const A* inverse_norm;  // [tasks][N]
  const int32_t* target;  // [tasks][N], -1 where ignored
};

// --- the prototypes' side, by one block ----------------------------------------------------------------------------

// P -> p, 1/|P_k|, p_k - p_0.
template <class A>
__device__ void normalise(const A* prototypes, const DescentState<A>& state, int64_t task, A* scratch) {
  const int64_t C = state.channels;
  A* unit = state.unit + task * state.classes * C;
  A* difference = state.difference + task * (state.classes - 1) * C;
  for (int k = 0; k < state.classes; ++k) {
    A mine = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) mine += prototypes[k * C + c] * prototypes[k * C + c];
    const A inverse = inverse_root(block_sum(mine, scratch));
    // A thread reads back only what it wrote: the same channels every time.
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      unit[k * C + c] = prototypes[k * C + c] * inverse;
      if (k > 0) difference[(k - 1) * C + c] = unit[k * C + c] - unit[c];
    }
    // Whoever reads these goes through a block_sum first, whose barriers order it after this.
    if (threadIdx.x == 0) state.prototype_inverse_norm[task * state.classes + k] = inverse;
  }
}

// v -> u_k - u_0, at the prototypes that `normalise` saw.
template <class A>
__device__ void set_direction(const A* v, const DescentState<A>& state, int64_t task, A* scratch) {
  const int64_t C = state.channels;
  const A* unit = state.unit + task * state.classes * C;
  const A* inverse = state.prototype_inverse_norm + task * state.classes;
  A* direction = state.direction + task * (state.classes - 1) * C;
  A along_0 = 0;
  for (int k = 0; k < state.classes; ++k) {
    A mine = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) mine += unit[k * C + c] * v[k * C + c];
    const A along = block_sum(mine, scratch);
    if (k == 0) {
      along_0 = along;
      continue;
    }
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
      direction[(k - 1) * C + c] =
          (v[k * C + c] - along * unit[k * C + c]) * inverse[k] - (v[c] - along_0 * unit[c]) * inverse[0];
  }
}

// Adds up the tiles' parts, in order; sums_0 = -(sums_1 + ... + sums_{K-1}).
template <class A>
__device__ void add_tiles(const DescentState<A>& state, int64_t task, int64_t tiles, A* sums) {
  const int64_t C = state.channels;
  const int others = state.classes - 1;
  const A* partial = state.partial + task * tiles * others * C;
  for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
    A zero = 0;
    for (int k = 0; k < others; ++k) {
      A total = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) total += partial[(tile * others + k) * C + c];
      sums[(k + 1) * C + c] = total;
      zero -= total;
    }
    sums[c] = zero;
  }
}

// P^0 -> what the first step needs, and with v what the first step back needs. One block per task.
template <class A>
__global__ void prepare_kernel(DescentState<A> state, const A* prototypes, int64_t task_stride, const A* v) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kWarp);
  const int64_t task = blockIdx.x;
  normalise(prototypes + task * task_stride, state, task, scratch);
  if (v) set_direction(v + task * state.classes * state.channels, state, task, scratch);
}

// --- a tile --------------------------------------------------------------------------------------------------------

// partial[k][c] = sum over the tile's pixels of weights[k][p] q(c, p); weights [others][32] in shared memory.
template <bool kChannelsLast, class S, class A>
__device__ void add_tile(const Features<S>& f, int64_t task, int64_t first, const A* weights, int others, A* partial) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const S* data = f.task(task) + first * f.pixel_stride;
  const int count = f.pixels - first < kTilePixels ? int(f.pixels - first) : kTilePixels;
  if (kChannelsLast) {
    for (int64_t c = threadIdx.x; c < f.channels; c += blockDim.x)
      for (int k = 0; k < others; ++k) {
        A total = 0;
        for (int p = 0; p < count; ++p) total += weights[k * kTilePixels + p] * widen(data[p * f.pixel_stride + c]);
        partial[k * f.channels + c] = total;
      }
  } else {
    for (int64_t c = warp; c < f.channels; c += kWarps) {
      const A q = lane < count ? widen(data[c * f.channel_stride + lane]) : A(0);
      for (int k = 0; k < others; ++k) {
        const A total = warp_sum(weights[k * kTilePixels + lane] * q);
        if (lane == 0) partial[k * f.channels + c] = total;
      }
    }
  }
}

// Softmax over the classes of one pixel, in place: d_k -> s_k for k = 1..K-1, kTilePixels apart.
template <class A>
__device__ void softmax(A* d, int others, A scale) {
  A top = 0;
  for (int k = 0; k < others; ++k) {
    d[k * kTilePixels] *= scale;
    if (d[k * kTilePixels] > top) top = d[k * kTilePixels];
  }
  A total = exp(-top);
  for (int k = 0; k < others; ++k) {
    d[k * kTilePixels] = exp(d[k * kTilePixels] - top);
    total += d[k * kTilePixels];
  }
  for (int k = 0; k < others; ++k) d[k * kTilePixels] /= total;
}

// --- one step --------------------------------------------------------------------------------------------------------

// P^i -> P^{i+1} (from -> to, task_stride apart), with h^i and, unless null, d [K-1][N] (cosine_stride apart). Grid:
// tiles, tasks.
template <bool kChannelsLast, int kClasses, class S, class A>
__global__ void descend_kernel(Features<S> f, DescentState<A> state, Descent<A> descent, const A* from, A* to, A* h,
                               int64_t task_stride, A* cosine, int64_t cosine_stride) {
  const int others = state.classes - 1;
  SharedMemory shared;
  A* warp_sums = shared.take<A>(kWarps * (kClasses + 1) * kTilePixels);
  A* dots = shared.take<A>((kClasses + 1) * kTilePixels);
  A* d = shared.take<A>(others * kTilePixels);
  A* scratch = shared.take<A>(kWarp);
  int* flag = shared.take<int>(1);
  const int64_t task = blockIdx.y, first = int64_t(blockIdx.x) * kTilePixels, C = f.channels;

  for (int k0 = 0; k0 < others; k0 += kClasses) {
    const int count = others - k0 < kClasses ? others - k0 : kClasses;
    tile_dots<kChannelsLast, kClasses>(f, task, first, state.difference + (task * others + k0) * C, count, warp_sums,
                                       dots);
    for (int i = threadIdx.x; i < count * kTilePixels; i += blockDim.x) {
      const int64_t x = first + i % kTilePixels;
      const A value = x < f.pixels ? dots[i] * descent.inverse_norm[task * f.pixels + x] : A(0);
      d[k0 * kTilePixels + i] = value;
      if (cosine && x < f.pixels) cosine[task * cosine_stride + (k0 + i / kTilePixels) * f.pixels + x] = value;
    }
    __syncthreads();  // the next classes overwrite the dots, and the pixels' threads read d
  }
  if (threadIdx.x < kTilePixels) {
    const int p = threadIdx.x;
    const int64_t x = first + p;
    const int32_t label = x < f.pixels ? descent.target[task * f.pixels + x] : -1;
    softmax(d + p, others, descent.scale);
    const A weight = label < 0 ? A(0) : descent.weight[task] * descent.inverse_norm[task * f.pixels + x];
    for (int k = 0; k < others; ++k) {
      A& w = d[k * kTilePixels + p];
      w = label < 0 ? A(0) : weight * (w - (label == k + 1 ? A(1) : A(0)));
    }
  }
  __syncthreads();  // the weights of all pixels
  add_tile<kChannelsLast>(f, task, first, d, others, state.partial + (task * gridDim.x + blockIdx.x) * others * C);

  if (!is_last_block(state.arrived + task, gridDim.x, flag)) return;
  from += task * task_stride;
  to += task * task_stride;
  h += task * task_stride;
  add_tiles(state, task, gridDim.x, h);
  const A* unit = state.unit + task * state.classes * C;
  for (int k = 0; k < state.classes; ++k) {
    A mine = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) mine += unit[k * C + c] * h[k * C + c];
    const A along = block_sum(mine, scratch);
    // A task with a wrong label has the weight NaN; with K = 1 there is no sum for it to show in.
    const A rate = descent.lr * state.prototype_inverse_norm[task * state.classes + k] + 0 * descent.weight[task];
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
      to[k * C + c] = from[k * C + c] - rate * (h[k * C + c] - along * unit[k * C + c]);
  }
  normalise(to, state, task, scratch);
}

// One step back at P^i: v = dLoss/dP^{i+1} -> dLoss/dP^i, in place, then everything that step i - 1 needs. `previous`
// is P^{i-1}, null at i = 0. coefficient [2(K-1)][N] (coefficient_stride apart) and own [N] collect what dq needs,
// basis [2(K-1)][C] (basis_stride apart) the vectors; all null where the features need no gradient. Grid: tiles, tasks.
template <bool kChannelsLast, int kClasses, class S, class A>
__global__ void ascend_kernel(Features<S> f, DescentState<A> state, Descent<A> descent, const A* previous, const A* h,
                              int64_t task_stride, const A* cosine, int64_t cosine_stride, A* v, A* coefficient,
                              int64_t coefficient_stride, A* own, A* basis, int64_t basis_stride) {
  const int others = state.classes - 1;
  SharedMemory shared;
  A* warp_sums = shared.take<A>(kWarps * (kClasses + 1) * kTilePixels);
  A* dots = shared.take<A>((kClasses + 1) * kTilePixels);
  A* s = shared.take<A>(others * kTilePixels);
  A* a = shared.take<A>(others * kTilePixels);
  A* scratch = shared.take<A>(kWarp);
  int* flag = shared.take<int>(1);
  const int64_t task = blockIdx.y, first = int64_t(blockIdx.x) * kTilePixels, C = f.channels, N = f.pixels;
  cosine += task * cosine_stride;

  for (int k0 = 0; k0 < others; k0 += kClasses) {
    const int count = others - k0 < kClasses ? others - k0 : kClasses;
    tile_dots<kChannelsLast, kClasses>(f, task, first, state.direction + (task * others + k0) * C, count, warp_sums,
                                       dots);
    for (int i = threadIdx.x; i < count * kTilePixels; i += blockDim.x) {
      const int64_t x = first + i % kTilePixels;
      a[k0 * kTilePixels + i] = x < N ? dots[i] * descent.inverse_norm[task * N + x] : A(0);
    }
    __syncthreads();  // the next classes overwrite the dots, and the pixels' threads read a
  }
  if (threadIdx.x < kTilePixels) {
    const int p = threadIdx.x;
    const int64_t x = first + p;
    const int32_t label = x < N ? descent.target[task * N + x] : -1;
    for (int k = 0; k < others; ++k) s[k * kTilePixels + p] = x < N ? cosine[k * N + x] : A(0);
    softmax(s + p, others, descent.scale);
    A mean = 0;  // sum_j s_j a_j; a_0 = 0
    for (int k = 0; k < others; ++k) mean += s[k * kTilePixels + p] * a[k * kTilePixels + p];
    const A inverse = x < N ? descent.inverse_norm[task * N + x] : A(0);
    A along = 0;
    for (int k = 0; k < others; ++k) {
      A& s_k = s[k * kTilePixels + p];
      const A a_k = a[k * kTilePixels + p];
      const A w = label < 0 ? A(0) : descent.weight[task] * (s_k - (label == k + 1 ? A(1) : A(0)));
      const A b = label < 0 ? A(0) : descent.weight[task] * descent.scale * s_k * (a_k - mean);
      s_k = b * inverse;
      if (coefficient && x < N) {
        // dq = sum of coefficient * basis, so they carry -lr / |q|.
        A* out = coefficient + task * coefficient_stride + x;
        out[k * N] = -descent.lr * inverse * w;
        out[(others + k) * N] = -descent.lr * inverse * b;
        along += w * a_k + b * cosine[k * N + x];
      }
    }
    if (own && x < N) own[task * N + x] += descent.lr * inverse * inverse * along;
  }
  __syncthreads();  // the weights of all pixels
  add_tile<kChannelsLast>(f, task, first, s, others, state.partial + (task * gridDim.x + blockIdx.x) * others * C);

  if (!is_last_block(state.arrived + task, gridDim.x, flag)) return;
  A* sums = state.sums + task * state.classes * C;
  add_tiles(state, task, gridDim.x, sums);
  if (basis)
    for (int64_t i = threadIdx.x; i < others * C; i += blockDim.x) {
      basis[task * basis_stride + i] = state.direction[task * others * C + i];
      basis[task * basis_stride + others * C + i] = state.difference[task * others * C + i];
    }
  const A* unit = state.unit + task * state.classes * C;
  h += task * task_stride;
  v += task * state.classes * C;
  for (int k = 0; k < state.classes; ++k) {
    A pb = 0, hv = 0, vp = 0, hp = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      const A p = unit[k * C + c], h_c = h[k * C + c], v_c = v[k * C + c];
      pb += p * sums[k * C + c];
      hv += h_c * v_c;
      vp += v_c * p;
      hp += h_c * p;
    }
    pb = block_sum(pb, scratch);
    hv = block_sum(hv, scratch);
    vp = block_sum(vp, scratch);
    hp = block_sum(hp, scratch);
    const A n = state.prototype_inverse_norm[task * state.classes + k] + 0 * descent.weight[task], nn = n * n;
    // (Hv)_k collected by vector: B, p, h, v.
    const A of_p = -pb * n + (3 * hp * vp - hv) * nn, of_h = -vp * nn, of_v = -hp * nn;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      const int64_t i = k * C + c;
      v[i] -= descent.lr * (n * sums[i] + of_p * unit[i] + of_h * h[i] + of_v * v[i]);
    }
  }
  if (!previous) return;
  normalise(previous + task * task_stride, state, task, scratch);
  set_direction(v, state, task, scratch);
}

}  // namespace fewseg
