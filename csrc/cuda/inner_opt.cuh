// The inner optimisation, as blocks do it: what a block does with its pixels in a step forward or back, and with the
// prototypes afterwards. inner_opt_resident.cuh and inner_opt_steps.cuh put kernels together from these. A step has
// three stages:
//
//   1. every block, for its chunks: dots with the K-1 differences, softmax, and each chunk's part of the sums h (or B);
//   2. the (K-1) C sums over the chunks (add_parts), shared out among blocks;
//   3. the step itself, from the sums: K vectors of C numbers.
//
// Symbols as in docs/math.md, section 3; `others` are the K-1 classes besides the background.
#pragma once

#include "chunk.cuh"

namespace fewseg {

template <class A>
struct Descent {
  A scale, lr;
  const A* weight;        // [tasks] alpha / V
  const int32_t* target;  // [tasks][N], -1 where ignored
  int classes;
};

// How the pixels of a task are cut; numbers of the launch plan.
struct Cut {
  int chunk_pixels, chunks_per_block;
};

// --- a block's pixels ------------------------------------------------------------------------------------------------

// Some neighbouring chunks of one task. Column x of the block's arrays is pixel first + x of the task; columns beyond
// the map are there, but nothing comes of them.
template <bool kStaged, int kHeld, class S, class A>
struct Block {
  Features<S> f;
  int64_t task, first_chunk;
  int others, chunk_pixels, chunks, columns, valid;
  S* staged;     // the chunks
  A* warp_sums;  // [kWarps][kHeld][columns]
  A* s;          // [others][columns]: d_k, then s_k, then the weights of the sums
  A* a;          // [others][columns], for the backward
  A* scratch;    // [kThreads]

  __device__ Block(SharedMemory& shared, const Features<S>& features, int64_t of_task, int64_t index, const Cut& cut,
                   int classes, bool backward)
      : f(features),
        task(of_task),
        first_chunk(index * cut.chunks_per_block),
        others(classes - 1),
        chunk_pixels(cut.chunk_pixels),
        columns(cut.chunk_pixels * cut.chunks_per_block) {
    const int64_t left = f.pixels - first();
    valid = left < columns ? int(left) : columns;
    chunks = (valid + chunk_pixels - 1) / chunk_pixels;
    staged = kStaged ? shared.take<S>(cut.chunks_per_block * chunk_size()) : nullptr;
    warp_sums = shared.take<A>(kWarps * kHeld * columns);
    s = shared.take<A>(others * columns);
    a = backward ? shared.take<A>(others * columns) : nullptr;
    scratch = shared.take<A>(kThreads);
  }

  __device__ int64_t first() const { return first_chunk * chunk_pixels; }
  __device__ int64_t chunk_size() const { return (f.channels + 1) * chunk_pixels; }

  __device__ Chunk<kStaged, S> chunk(int i) const {
    const int x = i * chunk_pixels;
    const S* data = kStaged ? staged + i * chunk_size() : f.task(task) + (first() + x) * f.pixel_stride;
    return {data, f.channels, f.channel_stride, f.pixel_stride, chunk_pixels, valid - x};
  }

  __device__ void load() const {
    if constexpr (kStaged) {
      for (int i = 0; i < chunks; ++i)
        load_chunk(f, task, first() + i * chunk_pixels, chunk_pixels, staged + i * chunk_size());
      chunks_loaded();
    }
  }

  // inverse_norm[x] = 1/|q(x)|. A barrier has to come before the next sums of the warps.
  __device__ void norms(A* inverse_norm) const {
    for (int i = 0; i < chunks; ++i) chunk_squares<kHeld>(chunk(i), warp_sums + i * chunk_pixels, columns);
    __syncthreads();
    for (int x = threadIdx.x; x < valid; x += blockDim.x)
      inverse_norm[x] = inverse_root(add_warps<kHeld>(warp_sums, 0, x, columns));
  }

  // dots[k][x] = vectors[k] . q(x) / |q(x)|, and 0 beyond the map. `saved` [others][N] gets a copy unless it is null.
  __device__ void cosines(const A* vectors, const A* inverse_norm, A* dots, A* saved) const {
    for (int k0 = 0; k0 < others; k0 += kHeld) {
      const int count = others - k0 < kHeld ? others - k0 : kHeld;
      for (int i = 0; i < chunks; ++i)
        chunk_dots<kHeld>(chunk(i), vectors + k0 * f.channels, count, warp_sums + i * chunk_pixels, columns);
      __syncthreads();
      for (int x = threadIdx.x; x < columns; x += blockDim.x)
        for (int k = 0; k < count; ++k) {
          const A value = x < valid ? product(add_warps<kHeld>(warp_sums, k, x, columns), inverse_norm[x]) : A(0);
          dots[(k0 + k) * columns + x] = value;
          if (saved && x < valid) saved[(k0 + k) * f.pixels + first() + x] = value;
        }
      // The next classes overwrite the warps' sums. A column's dots are read by the thread that wrote them.
      if (k0 + kHeld < others) __syncthreads();
    }
  }

  // parts[chunk][k][c], of the task: the sums over each chunk's pixels of s_k(x) q(c, x).
  __device__ void sums(A* parts) const {
    __syncthreads();  // the weights of all pixels
    for (int i = 0; i < chunks; ++i)
      chunk_sums<kHeld>(chunk(i), s + i * chunk_pixels, others, columns,
                        parts + (first_chunk + i) * others * f.channels);
  }
};

// Softmax over the classes of one pixel, in place: d_k -> s_k for k = 1..K-1, `columns` apart.
template <class A>
__device__ void softmax(A* d, int others, int columns, A scale) {
  A top = 0;
  for (int k = 0; k < others; ++k) {
    d[k * columns] *= scale;
    if (d[k * columns] > top) top = d[k * columns];
  }
  A total = exp(-top);
  for (int k = 0; k < others; ++k) {
    d[k * columns] = exp(d[k * columns] - top);
    total += d[k * columns];
  }
  for (int k = 0; k < others; ++k) d[k * columns] /= total;
}

// Stage 1 forward. difference [others][C]: p_k - p_0; inverse_norm from the block's first pixel on; cosine [others][N]
// may be null.
template <class Block, class A>
__device__ void descend_pixels(const Block& block, const Descent<A>& descent, const A* difference,
                               const A* inverse_norm, A* cosine, A* parts) {
  const int columns = block.columns, others = block.others;
  block.cosines(difference, inverse_norm, block.s, cosine);
  const int32_t* target = descent.target + block.task * block.f.pixels + block.first();
  for (int x = threadIdx.x; x < columns; x += blockDim.x) {
    const int32_t label = x < block.valid ? target[x] : -1;
    softmax(block.s + x, others, columns, descent.scale);
    const A weight = label < 0 ? A(0) : product(descent.weight[block.task], inverse_norm[x]);
    for (int k = 0; k < others; ++k) {
      A& w = block.s[k * columns + x];
      w = label < 0 ? A(0) : weight * (w - (label == k + 1 ? A(1) : A(0)));
    }
  }
  block.sums(parts);
}

// Where a step back leaves what dq needs, for one task: null where it is not needed.
template <class A>
struct Collected {
  A* coefficient;  // [2(K-1)][N]
  A* basis;        // [2(K-1)][C]
  A* own;          // [N]
};

// Stage 1 back. direction [others][C]: u_k - u_0; cosine [others][N]: d_k as the forward saved it.
template <class Block, class A>
__device__ void ascend_pixels(const Block& block, const Descent<A>& descent, const A* direction, const A* inverse_norm,
                              const A* cosine, const Collected<A>& collected, A* parts) {
  const int columns = block.columns, others = block.others;
  const int64_t N = block.f.pixels, first = block.first();
  block.cosines(direction, inverse_norm, block.a, nullptr);
  const int32_t* target = descent.target + block.task * N + first;
  for (int x = threadIdx.x; x < columns; x += blockDim.x) {
    A *s = block.s + x, *a = block.a + x;
    const bool inside = x < block.valid;
    const int32_t label = inside ? target[x] : -1;
    for (int k = 0; k < others; ++k) s[k * columns] = inside ? cosine[k * N + first + x] : A(0);
    softmax(s, others, columns, descent.scale);
    A mean = 0;  // sum_j s_j a_j; a_0 = 0
    for (int k = 0; k < others; ++k) mean += s[k * columns] * a[k * columns];
    const A inverse = inside ? inverse_norm[x] : A(0);
    A along = 0;
    for (int k = 0; k < others; ++k) {
      const A s_k = s[k * columns], a_k = a[k * columns];
      const A w = label < 0 ? A(0) : descent.weight[block.task] * (s_k - (label == k + 1 ? A(1) : A(0)));
      const A b = label < 0 ? A(0) : product(descent.weight[block.task], descent.scale) * s_k * (a_k - mean);
      s[k * columns] = b * inverse;
      if (collected.coefficient && inside) {
        // dq = sum of coefficient * basis, so they carry -lr / |q|.
        A* out = collected.coefficient + first + x;
        out[k * N] = -descent.lr * inverse * w;
        out[(others + k) * N] = -descent.lr * inverse * b;
        along += product(w, a_k) + product(b, cosine[k * N + first + x]);
      }
    }
    if (collected.own && inside) collected.own[first + x] += descent.lr * inverse * inverse * along;
  }
  block.sums(parts);
}

// --- the prototypes' side, by a whole block --------------------------------------------------------------------------

// Every thread owns the channels threadIdx.x, threadIdx.x + blockDim.x, ... of all vectors and reads back only what it
// wrote itself, so the barriers of block_sum are the only ones. Who reads the inverse norms, written by thread 0, goes
// through one of them first. `vectors` [K][C] is the block's own memory, shared or global.

// vectors: P_k -> p_0, and p_k - p_0 for k >= 1. inverse_norm [K] = 1/|P_k|.
template <class A>
__device__ void normalise(int classes, int64_t C, A* vectors, A* inverse_norm, A* scratch) {
  for (int k = 0; k < classes; ++k) {
    A* row = vectors + k * C;
    A mine = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) mine += row[c] * row[c];
    const A inverse = inverse_root(block_sum(mine, scratch));
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
      row[c] = k == 0 ? product(row[c], inverse) : product(row[c], inverse) - vectors[c];
    if (threadIdx.x == 0) inverse_norm[k] = inverse;
  }
}

// Stage 3 forward: P^i -> P^{i+1} with the sums h_k, k >= 1. Leaves p_0 and p_k - p_0 of P^{i+1} in `vectors`. `to` and
// h_0 may be null.
template <class A>
__device__ void take_step(const Descent<A>& descent, int64_t task, int64_t C, const A* from, A* h, bool keep, A* to,
                          A* vectors, A* inverse_norm, A* scratch) {
  const int K = descent.classes;
  for (int k = 0; k < K; ++k) {
    const A inverse = inverse_norm[k];
    // h_0 = -(h_1 + ... + h_{K-1})
    const auto sum = [&](int64_t c) {
      if (k > 0) return h[k * C + c];
      A total = 0;
      for (int j = 1; j < K; ++j) total -= h[j * C + c];
      return total;
    };
    A mine = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) mine += product(from[k * C + c], inverse) * sum(c);
    const A along = block_sum(mine, scratch);
    // A task with a wrong label has the weight NaN; with K = 1 there is no sum for it to show in.
    const A rate = product(descent.lr, inverse) + product(A(0), descent.weight[task]);
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      const A h_c = sum(c);
      const A moved = from[k * C + c] - rate * (h_c - along * product(from[k * C + c], inverse));
      vectors[k * C + c] = moved;
      if (!keep) continue;
      to[k * C + c] = moved;
      if (k == 0) h[c] = h_c;
    }
  }
  normalise(K, C, vectors, inverse_norm, scratch);
}

// vectors: v_k -> u_0, and u_k - u_0 for k >= 1, at the prototypes P; inverse_norm [K] = 1/|P_k|.
template <class A>
__device__ void set_directions(int classes, int64_t C, const A* prototypes, A* vectors, A* inverse_norm, A* scratch) {
  for (int k = 0; k < classes; ++k) {
    const A* p = prototypes + k * C;
    A* row = vectors + k * C;
    A square = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) square += p[c] * p[c];
    const A inverse = inverse_root(block_sum(square, scratch));
    A mine = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) mine += product(p[c], inverse) * row[c];
    const A along = block_sum(mine, scratch);
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      const A u = product(row[c] - along * product(p[c], inverse), inverse);
      row[c] = k == 0 ? u : u - vectors[c];
    }
    if (threadIdx.x == 0) inverse_norm[k] = inverse;
  }
}

// Stage 3 back, at P^i: v = dLoss/dP^{i+1} -> dLoss/dP^i with h^i [K][C] and the sums B_k, k >= 1 [K-1][C]. Then the
// directions at P^{i-1}, `previous`, unless that is null. `to` and `basis` are written if `keep`.
template <class A>
__device__ void step_back(const Descent<A>& descent, int64_t task, int64_t C, const A* prototypes, const A* previous,
                          const A* h, const A* sums, const A* v, bool keep, A* to, A* basis, A* vectors,
                          A* inverse_norm, A* scratch) {
  const int K = descent.classes, others = K - 1;
  if (keep && basis)
    for (int k = 1; k < K; ++k)
      for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        basis[(k - 1) * C + c] = vectors[k * C + c];
        basis[(others + k - 1) * C + c] =
            product(prototypes[k * C + c], inverse_norm[k]) - product(prototypes[c], inverse_norm[0]);
      }
  for (int k = 0; k < K; ++k) {
    const A n = inverse_norm[k];
    // B_0 = -(B_1 + ... + B_{K-1})
    const auto sum = [&](int64_t c) {
      if (k > 0) return sums[(k - 1) * C + c];
      A total = 0;
      for (int j = 0; j < others; ++j) total -= sums[j * C + c];
      return total;
    };
    A pb = 0, hv = 0, vp = 0, hp = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      const A p = product(prototypes[k * C + c], n), h_c = h[k * C + c], v_c = v[k * C + c];
      pb += p * sum(c);
      hv += h_c * v_c;
      vp += v_c * p;
      hp += h_c * p;
    }
    pb = block_sum(pb, scratch);
    hv = block_sum(hv, scratch);
    vp = block_sum(vp, scratch);
    hp = block_sum(hp, scratch);
    const A of_b = n + product(A(0), descent.weight[task]), nn = product(of_b, of_b);
    // (Hv)_k collected by vector: B, p, h, v.
    const A of_p = product(3 * hp * vp - hv, nn) - product(pb, of_b), of_h = -vp * nn, of_v = -hp * nn;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      const int64_t i = k * C + c;
      A hessian = product(of_b, sum(c));
      hessian += of_p * product(prototypes[i], n);
      hessian += of_h * h[i];
      hessian += of_v * v[i];
      const A moved = v[i] - descent.lr * hessian;
      vectors[i] = moved;
      if (keep) to[i] = moved;
    }
  }
  if (previous) set_directions(K, C, previous, vectors, inverse_norm, scratch);
}

}  // namespace fewseg
