// Bodies of the inner optimisation, one set per instruction set. A: accumulator type, S: storage type of the features.
// Symbols as in docs/math.md, section 3.
#pragma once

#include <cstdint>

#include "../common/storage.h"
#include "feature_planes.h"

namespace fewseg {

// A task's features are packed once, then read by every step. A tile is kTile pixels; within it blocks of kTile
// channels follow one another, and within a block its pixels: [N / kTile][C / kTile][kTile pixels][kTile channels].
// So a step streams through memory in order, keeps a tile in L2 between its dots and its accumulation, and never meets
// the cache-set conflicts of rows that are a power of two apart. The last tile holds only the pixels there are; the
// last channel block is padded with zeros. Values keep the storage type; norms are applied to the per-pixel scalars.
constexpr int64_t kTile = 16;

constexpr int64_t padded(int64_t channels) {
  return (channels + kTile - 1) / kTile * kTile;
}

// The unit of work of a thread and of the fixed-order sums: a function of nothing but the pixel's index.
constexpr int64_t kChunk = 128;

// One task, as the sweeps see it.
template <class S>
struct PackedTask {
  const S* tiles;
  const Accumulator<S>* inverse_norm;  // [N], 0 where the pixel is zero
  const int32_t* target;               // [N], -1 where ignored
  int64_t channels, padded_channels, pixels, classes;
};

template <class S>
struct InnerOptBodiesOf {
  using A = Accumulator<S>;

  // Packs the pixels first..last (a multiple of kTile, or the end) and computes their inverse norms.
  void (*pack)(const S* features, int64_t channels, int64_t pixels, bool channels_last, int64_t first, int64_t last,
               S* tiles, A* inverse_norm);

  // One step of the descent over the pixels first..last (at most kChunk):
  //   difference [K-1][Cp]   p_k - p_0
  //   weight                 alpha / V
  //   cosine [K-1][N]        out, d_k(x); may be null
  //   partial [K-1][Cp]      out, sum over these pixels of w_k(x) q^(x)
  void (*descend)(const PackedTask<S>& task, const A* difference, A scale, A weight, int64_t first, int64_t last,
                  A* cosine, A* partial);

  // One step back over the pixels first..last, given d of that step:
  //   direction [K-1][Cp]    u_k - u_0
  //   coefficient [2(K-1)][N] out, w_k then b_k, k = 1..K-1; null where the features need no gradient
  //   along [N]              added to: sum_k w_k a_k + b_k d_k
  //   partial [K-1][Cp]      out, sum over these pixels of b_k(x) q^(x)
  void (*ascend)(const PackedTask<S>& task, const A* direction, const A* cosine, A scale, A weight, int64_t first,
                 int64_t last, A* coefficient, A* along, A* partial);

  // dq = sum_j coefficient[j][x] basis[j][c] + own[x] q, for the rows first..last of memory: channels of NCHW, pixels
  // of channels-last.
  void (*gradient)(FeaturePlanes<S> features, const A* coefficient, const A* basis, int64_t count, const A* own,
                   int64_t first, int64_t last, S* d_features);

  // The K x C side of a step; every vector has padded_channels numbers, the padding zero.
  // normalise: P -> p, 1/|P_k|, and p_k - p_0 for k = 1..K-1.
  void (*normalise)(const A* prototypes, int64_t classes, int64_t channels, A* unit, A* inverse_norm, A* difference);
  // step: h_0 from h_1..h_{K-1}, then P_k -= lr g_k.
  void (*step)(const A* unit, const A* inverse_norm, int64_t classes, int64_t channels, A lr, A* h, A* prototypes);
  // direction: u_k - u_0 for k = 1..K-1.
  void (*direction)(const A* v, const A* unit, const A* inverse_norm, int64_t classes, int64_t channels, A* u);
  // step_back: B_0 from B_1..B_{K-1}, then v_k -= lr (Hv)_k.
  void (*step_back)(const A* unit, const A* inverse_norm, const A* h, int64_t classes, int64_t channels, A lr, A* b,
                    A* v);

  // total[i] = sum over the chunks, in order, of partials[chunk][i].
  void (*reduce)(const A* partials, int64_t chunks, int64_t count, A* total);
};

struct InnerOptBodies {
  InnerOptBodiesOf<float> f32;
  InnerOptBodiesOf<double> f64;
  InnerOptBodiesOf<BFloat16> bf16;
  InnerOptBodiesOf<Half> f16;

  const InnerOptBodiesOf<float>& of(float) const { return f32; }
  const InnerOptBodiesOf<double>& of(double) const { return f64; }
  const InnerOptBodiesOf<BFloat16>& of(BFloat16) const { return bf16; }
  const InnerOptBodiesOf<Half>& of(Half) const { return f16; }
};

}  // namespace fewseg
