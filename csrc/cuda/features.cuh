// What the operators do with feature maps: dots with every pixel, sums over the pixels, and maps made of a few vectors.
// Every kernel is written for both layouts: in NCHW a warp's lanes are neighbouring pixels, in channels-last
// neighbouring channels, so that reads are coalesced either way.
#pragma once

#include "features_launch.h"
#include "reduce.cuh"

namespace fewseg {

// A batch of maps: element (task, c, x) is at data[task * channels * pixels + c * channel_stride + x * pixel_stride].
template <class S>
struct Features {
  const S* data;
  int64_t channels, pixels, channel_stride, pixel_stride;

  __device__ const S* task(int64_t index) const { return data + index * channels * pixels; }
};

// dots[k][p] = vectors[k] . q(first + p) for up to kClasses vectors [count][C] and the 32 pixels of a tile, and the
// squares |q|^2 as row `count`. warp_sums [kWarps][kClasses + 1][32] and dots [kClasses + 1][32] are shared memory.
// Ends with a barrier.
template <bool kChannelsLast, int kClasses, class S, class A>
__device__ void tile_dots(const Features<S>& f, int64_t task, int64_t first, const A* vectors, int count, A* warp_sums,
                          A* dots) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const S* data = f.task(task);
  if (kChannelsLast) {
    // A warp takes a pixel, its lanes the channels.
    for (int p = warp; p < kTilePixels; p += kWarps) {
      A sums[kClasses + 1] = {};
      if (first + p < f.pixels) {
        const S* pixel = data + (first + p) * f.pixel_stride;
        for (int64_t c = lane; c < f.channels; c += kWarp) {
          const A q = widen(pixel[c]);
#pragma unroll
          for (int k = 0; k < kClasses; ++k)
            if (k < count) sums[k] += vectors[k * f.channels + c] * q;
          sums[kClasses] += q * q;
        }
      }
      for (int k = 0; k < count; ++k) {
        const A total = warp_sum(sums[k]);
        if (lane == 0) dots[k * kTilePixels + p] = total;
      }
      const A square = warp_sum(sums[kClasses]);
      if (lane == 0) dots[count * kTilePixels + p] = square;
    }
  } else {
    // A lane takes a pixel, the warps share the channels.
    A sums[kClasses + 1] = {};
    if (first + lane < f.pixels) {
      const S* pixel = data + first + lane;
      for (int64_t c = warp; c < f.channels; c += kWarps) {
        const A q = widen(pixel[c * f.channel_stride]);
#pragma unroll
        for (int k = 0; k < kClasses; ++k)
          if (k < count) sums[k] += vectors[k * f.channels + c] * q;
        sums[kClasses] += q * q;
      }
    }
    A* mine = warp_sums + warp * (kClasses + 1) * kTilePixels + lane;
    for (int k = 0; k < count; ++k) mine[k * kTilePixels] = sums[k];
    mine[count * kTilePixels] = sums[kClasses];
    __syncthreads();
    for (int i = threadIdx.x; i < (count + 1) * kTilePixels; i += blockDim.x) {
      A total = 0;
      for (int w = 0; w < kWarps; ++w) total += warp_sums[w * (kClasses + 1) * kTilePixels + i];
      dots[i] = total;
    }
  }
  __syncthreads();
}

// cosine[task][k][x] = vectors[task][k] . q(x) / |q(x)| and inverse_norm[task][x] = 1/|q(x)|; where inverse_norm is
// null, the plain dots. Grid: tiles of pixels, tasks.
template <bool kChannelsLast, int kClasses, class S, class A>
__global__ void cosines_kernel(Features<S> f, const A* vectors, int classes, A* inverse_norm, A* cosine) {
  SharedMemory shared;
  A* warp_sums = shared.take<A>(kWarps * (kClasses + 1) * kTilePixels);
  A* dots = shared.take<A>((kClasses + 1) * kTilePixels);
  const int64_t task = blockIdx.y, first = int64_t(blockIdx.x) * kTilePixels;
  for (int k0 = 0; k0 < classes; k0 += kClasses) {
    const int count = classes - k0 < kClasses ? classes - k0 : kClasses;
    tile_dots<kChannelsLast, kClasses>(f, task, first, vectors + (task * classes + k0) * f.channels, count, warp_sums,
                                       dots);
    for (int i = threadIdx.x; i < count * kTilePixels; i += blockDim.x) {
      const int k = i / kTilePixels, p = i % kTilePixels;
      if (first + p >= f.pixels) continue;
      const A inverse = inverse_norm ? inverse_root(dots[count * kTilePixels + p]) : A(1);
      cosine[(task * classes + k0 + k) * f.pixels + first + p] = dots[i] * inverse;
      if (inverse_norm && k0 + k == 0) inverse_norm[task * f.pixels + first + p] = inverse;
    }
    __syncthreads();  // the next classes overwrite the dots
  }
}

// A channel of a map made of a few vectors and of the features themselves, written while the features are read.
template <int kClasses, class S, class A>
struct MapOfVectors {
  const Features<S>& f;
  const int count;
  const A* own = nullptr;
  S* out = nullptr;  // where it stays null there is no map to write
  A basis[kClasses] = {};

  __device__ MapOfVectors(const Features<S>& features, int64_t task, int64_t c, int classes, const A* vectors,
                          const A* factors, S* map)
      : f(features), count(classes) {
    if (!map) return;
    own = factors + task * f.pixels;
    out = map + task * f.channels * f.pixels + c * f.channel_stride;
#pragma unroll
    for (int k = 0; k < kClasses; ++k)
      if (k < count) basis[k] = vectors[(task * count + k) * f.channels + c];
  }

  __device__ void write(const A* weight, int64_t x, A q) const {
    if (!out) return;
    // In combine_kernel's order: the bits must not depend on which gradients are asked for.
    A value = 0;
#pragma unroll
    for (int k = 0; k < kClasses; ++k)
      if (k < count) value += weight[k * f.pixels + x] * basis[k];
    value += own[x] * q;
    narrow(value, out[x * f.pixel_stride]);
  }
};

// sums[task][k][c] = sum_x weight[task][k][x] q(c, x). Grid: channels (kWarps or 32 a block), tasks.
//
// With `out`, for at most kClasses classes, the same read of the features gives a map in their layout:
// out(c, x) = sum_k weight[task][k][x] basis[task][k][c] + own[task][x] q(c, x).
template <bool kChannelsLast, int kClasses, class S, class A>
__global__ void pool_kernel(Features<S> f, const A* weight, int classes, A* sums, const A* basis, const A* own,
                            S* out) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t task = blockIdx.y;
  const S* data = f.task(task);
  for (int k0 = 0; k0 < classes; k0 += kClasses) {
    const int count = classes - k0 < kClasses ? classes - k0 : kClasses;
    const A* w = weight + (task * classes + k0) * f.pixels;
    A* total_of = sums + (task * classes + k0) * f.channels;
    A mine[kClasses] = {};
    if (kChannelsLast) {
      // A lane takes a channel, the warps share the pixels.
      SharedMemory shared;
      A* warp_sums = shared.take<A>(kWarps * kClasses * kWarp);
      const int64_t c = int64_t(blockIdx.x) * kWarp + lane;
      if (c < f.channels) {
        const MapOfVectors<kClasses, S, A> map(f, task, c, count, basis, own, out);
        for (int64_t x = warp; x < f.pixels; x += kWarps) {
          const A q = widen(data[x * f.pixel_stride + c]);
#pragma unroll
          for (int k = 0; k < kClasses; ++k)
            if (k < count) mine[k] += w[k * f.pixels + x] * q;
          map.write(w, x, q);
        }
      }
      for (int k = 0; k < count; ++k) warp_sums[(warp * kClasses + k) * kWarp + lane] = mine[k];
      __syncthreads();
      for (int i = threadIdx.x; i < count * kWarp; i += blockDim.x) {
        const int64_t channel = int64_t(blockIdx.x) * kWarp + i % kWarp;
        A total = 0;
        for (int other = 0; other < kWarps; ++other) total += warp_sums[other * kClasses * kWarp + i];
        if (channel < f.channels) total_of[i / kWarp * f.channels + channel] = total;
      }
      __syncthreads();  // the next classes overwrite the sums
    } else {
      // A warp takes a channel, its lanes share the pixels.
      const int64_t c = int64_t(blockIdx.x) * kWarps + warp;
      if (c >= f.channels) return;
      const S* row = data + c * f.channel_stride;
      const MapOfVectors<kClasses, S, A> map(f, task, c, count, basis, own, out);
      for (int64_t x = lane; x < f.pixels; x += kWarp) {
        const A q = widen(row[x]);
#pragma unroll
        for (int k = 0; k < kClasses; ++k)
          if (k < count) mine[k] += w[k * f.pixels + x] * q;
        map.write(w, x, q);
      }
      for (int k = 0; k < count; ++k) {
        const A total = warp_sum(mine[k]);
        if (lane == 0) total_of[k * f.channels + c] = total;
      }
    }
  }
}

// out(c, x) = sum_j coefficient[task][j][x] basis[task][j][c] + own[task][x] q(c, x), in the layout of the features;
// own may be null. Grid: tiles of pixels, tiles of channels, tasks. A block holds kTerms coefficients and basis vectors
// of its tile in shared memory at a time; a thread owns eight results.
template <bool kChannelsLast, class S, class A>
__global__ void combine_kernel(Features<S> f, const A* coefficient, const A* basis, int terms, const A* own, S* out) {
  SharedMemory shared;
  A* coefficients = shared.take<A>(kTerms * kTilePixels);
  A* vectors = shared.take<A>(kTerms * kTileChannels);
  constexpr int kOwned = kTilePixels * kTileChannels / kThreads;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t task = blockIdx.z;
  const int64_t x0 = int64_t(blockIdx.x) * kTilePixels, c0 = int64_t(blockIdx.y) * kTileChannels;
  coefficient += task * terms * f.pixels;
  basis += task * terms * f.channels;

  A sums[kOwned] = {};
  for (int j0 = 0; j0 < terms; j0 += kTerms) {
    const int count = terms - j0 < kTerms ? terms - j0 : kTerms;
    __syncthreads();  // the terms before these may still be being read
    for (int i = threadIdx.x; i < count * kTilePixels; i += blockDim.x) {
      const int64_t j = j0 + i / kTilePixels, x = x0 + i % kTilePixels;
      coefficients[i] = x < f.pixels ? coefficient[j * f.pixels + x] : A(0);
    }
    for (int i = threadIdx.x; i < count * kTileChannels; i += blockDim.x) {
      const int64_t j = j0 + i / kTileChannels, c = c0 + i % kTileChannels;
      vectors[i] = c < f.channels ? basis[j * f.channels + c] : A(0);
    }
    __syncthreads();
    for (int j = 0; j < count; ++j)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        const int p = kChannelsLast ? warp * kOwned / 2 + i / 2 : lane;
        const int c = kChannelsLast ? lane + i % 2 * kWarp : warp * kOwned + i;
        sums[i] += coefficients[j * kTilePixels + p] * vectors[j * kTileChannels + c];
      }
  }
  for (int i = 0; i < kOwned; ++i) {
    const int64_t x = x0 + (kChannelsLast ? warp * kOwned / 2 + i / 2 : lane);
    const int64_t c = c0 + (kChannelsLast ? lane + i % 2 * kWarp : warp * kOwned + i);
    if (x >= f.pixels || c >= f.channels) continue;
    const int64_t at = task * f.channels * f.pixels + c * f.channel_stride + x * f.pixel_stride;
    A value = sums[i];
    if (own) value += own[task * f.pixels + x] * widen(f.data[at]);
    narrow(value, out[at]);
  }
}

}  // namespace fewseg
