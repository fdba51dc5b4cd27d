// A chunk: some neighbouring pixels of a task with all their channels, brought to shared memory in one layout whatever
// the map's own. A thread owns the channels threadIdx.x, threadIdx.x + kThreads, ... and takes the pixels in strips of
// eight, so that a sum over channels ends with a few shuffles for eight pixels at once, and a sum over pixels stays
// within a thread.
#pragma once

#include "features.cuh"
#include "inner_opt_launch.h"

namespace fewseg {

// What a thread reads at once: 16 bytes, the values of neighbouring pixels in one channel.
template <class S>
struct alignas(16) Unit {
  static constexpr int kPixels = 16 / int(sizeof(S));
  S at[kPixels];
};

// In shared memory [pixels / Unit::kPixels][channels + 1] units: lanes with neighbouring channels read neighbouring
// units, and thanks to the one channel more, which holds nothing, lanes that write the units of one channel do not
// meet in the same banks. Pixels beyond the map are zero. Unless kStaged the chunk is read where it lies in the map.
template <bool kStaged, class S>
struct Chunk {
  const S* data;
  int64_t channels, channel_stride, pixel_stride;  // the strides are of the map
  int pixels, count;                               // of them in the map

  template <class A>
  __device__ void read(int strip, int64_t c, A (&q)[kStrip]) const {
    if constexpr (kStaged) {
      constexpr int kUnits = kStrip / Unit<S>::kPixels;
      const Unit<S>* units = reinterpret_cast<const Unit<S>*>(data) + strip * kUnits * (channels + 1) + c;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const Unit<S> unit = units[u * (channels + 1)];
#pragma unroll
        for (int i = 0; i < Unit<S>::kPixels; ++i) q[u * Unit<S>::kPixels + i] = widen(unit.at[i]);
      }
    } else {
      const S* from = data + c * channel_stride + strip * kStrip * pixel_stride;
#pragma unroll
      for (int i = 0; i < kStrip; ++i) q[i] = strip * kStrip + i < count ? widen(from[i * pixel_stride]) : A(0);
    }
  }
};

// --- loading ---------------------------------------------------------------------------------------------------------

// NCHW, in pieces of one value up to one unit. The pieces of a channel go to neighbouring lanes.
template <class Piece, class S>
__device__ void load_rows(const Features<S>& f, const S* from, int pixels, int count, S* chunk) {
  constexpr int kPerPiece = int(sizeof(Piece) / sizeof(S));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int pieces = pixels / kPerPiece, rows = kWarp / pieces;
  const int row = lane / pieces, x = lane % pieces * kPerPiece;
  if (row >= rows) return;
  const int step = kWarps * rows;
  int left = int(f.channels) - (warp * rows + row);
  S* to = chunk + x / Unit<S>::kPixels * (f.channels + 1) * Unit<S>::kPixels + x % Unit<S>::kPixels;
  to += (warp * rows + row) * Unit<S>::kPixels;
  from += (warp * rows + row) * f.channel_stride + x;
  if (x >= count) {
    for (; left > 0; left -= step, to += step * Unit<S>::kPixels) *reinterpret_cast<Piece*>(to) = Piece{};
  } else if constexpr (sizeof(Piece) >= 4) {
#pragma unroll 8
    for (; left > 0; left -= step, to += step * Unit<S>::kPixels, from += step * f.channel_stride)
      copy_async(reinterpret_cast<Piece*>(to), reinterpret_cast<const Piece*>(from));
  } else {
    // No asynchronous copy is this small. Loads that are in flight together take its place.
    constexpr int kBatch = 32;
    for (; left > (kBatch - 1) * step; left -= kBatch * step) {
      Piece batch[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i, from += step * f.channel_stride)
        batch[i] = *reinterpret_cast<const Piece*>(from);
#pragma unroll
      for (int i = 0; i < kBatch; ++i, to += step * Unit<S>::kPixels) *reinterpret_cast<Piece*>(to) = batch[i];
    }
    for (; left > 0; left -= step, to += step * Unit<S>::kPixels, from += step * f.channel_stride)
      *reinterpret_cast<Piece*>(to) = *reinterpret_cast<const Piece*>(from);
  }
}

// Channels-last, 16 bytes of channels at a time: a thread reads a square of pixels and channels and turns it.
template <class S>
__device__ void load_squares(const Features<S>& f, const S* from, int pixels, int count, S* chunk) {
  constexpr int kSide = Unit<S>::kPixels;
  const int across = int(f.channels / kSide);
  for (int i = threadIdx.x; i < pixels / kSide * across; i += blockDim.x) {
    const int x = i / across * kSide, c = i % across * kSide;
    Unit<S> in[kSide];
#pragma unroll
    for (int p = 0; p < kSide; ++p)
      in[p] = x + p < count ? *reinterpret_cast<const Unit<S>*>(from + (x + p) * f.pixel_stride + c) : Unit<S>{};
    Unit<S>* to = reinterpret_cast<Unit<S>*>(chunk) + x / kSide * (f.channels + 1) + c;
#pragma unroll
    for (int k = 0; k < kSide; ++k) {
      Unit<S> out;
#pragma unroll
      for (int p = 0; p < kSide; ++p) out.at[p] = in[p].at[k];
      to[k] = out;
    }
  }
}

// Channels-last, value by value.
template <class S>
__device__ void load_values(const Features<S>& f, const S* from, int pixels, int count, S* chunk) {
  for (int x = 0; x < pixels; ++x) {
    S* to = chunk + x / Unit<S>::kPixels * (f.channels + 1) * Unit<S>::kPixels + x % Unit<S>::kPixels;
    for (int64_t c = threadIdx.x; c < f.channels; c += blockDim.x)
      to[c * Unit<S>::kPixels] = x < count ? from[x * f.pixel_stride + c] : S{};
  }
}

inline __device__ bool are_aligned(const void* from, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(from) % 16 == 0 && stride_bytes % 16 == 0;
}

// Asks for the chunk of a task that begins at pixel `first`; it is there after chunks_loaded(). What the map's strides
// and addresses allow decides how: the contents are the same.
template <class S>
__device__ void load_chunk(const Features<S>& f, int64_t task, int64_t first, int pixels, S* chunk) {
  const int count = f.pixels - first < pixels ? int(f.pixels - first) : pixels;
  const S* from = f.task(task) + first * f.pixel_stride;
  if (f.pixel_stride == 1) {
    if (are_aligned(from, f.channel_stride * int64_t(sizeof(S))))
      load_rows<Unit<S>>(f, from, pixels, count, chunk);
    else
      load_rows<S>(f, from, pixels, count, chunk);
  } else {
    if (are_aligned(from, f.pixel_stride * int64_t(sizeof(S))))
      load_squares(f, from, pixels, count, chunk);
    else
      load_values(f, from, pixels, count, chunk);
  }
}

__device__ inline void chunks_loaded() {
  copies_done();
  __syncthreads();  // the other threads' copies
}

// --- sums ------------------------------------------------------------------------------------------------------------

// The sums over a warp of eight values: a lane returns that of value lane / 4. Every exchange halves what a lane still
// carries. The values are used up.
template <class A>
__device__ A strip_sum(A (&values)[kStrip]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = kStrip / 2, distance = kWarp / 2; half > 0; half /= 2, distance /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A mine = upper ? values[i + half] : values[i], others = upper ? values[i] : values[i + half];
      values[i] = mine + __shfl_xor_sync(~0u, others, distance);
    }
  }
  A total = values[0];
  for (int distance = kWarp / kStrip / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(~0u, total, distance);
  return total;
}

// warp_sums[warp][k][x] = the warp's channels' part of vectors[k] . q(x), for `count` vectors [C]; rows of `columns`.
template <int kHeld, bool kStaged, class S, class A>
__device__ void chunk_dots(const Chunk<kStaged, S>& chunk, const A* vectors, int count, A* warp_sums, int columns) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int strip = 0; strip < chunk.pixels / kStrip; ++strip) {
    A sums[kHeld][kStrip] = {};
    for (int64_t c = threadIdx.x; c < chunk.channels; c += kThreads) {
      A q[kStrip];
      chunk.read(strip, c, q);
#pragma unroll
      for (int k = 0; k < kHeld; ++k)
        if (k < count) {
          const A v = vectors[k * chunk.channels + c];
#pragma unroll
          for (int i = 0; i < kStrip; ++i) sums[k][i] += v * q[i];
        }
    }
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (k < count) {
        const A total = strip_sum(sums[k]);
        if (lane % (kWarp / kStrip) == 0)
          warp_sums[(warp * kHeld + k) * columns + strip * kStrip + lane / (kWarp / kStrip)] = total;
      }
  }
}

// The same for |q(x)|^2.
template <int kHeld, bool kStaged, class S, class A>
__device__ void chunk_squares(const Chunk<kStaged, S>& chunk, A* warp_sums, int columns) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int strip = 0; strip < chunk.pixels / kStrip; ++strip) {
    A sums[kStrip] = {};
    for (int64_t c = threadIdx.x; c < chunk.channels; c += kThreads) {
      A q[kStrip];
      chunk.read(strip, c, q);
#pragma unroll
      for (int i = 0; i < kStrip; ++i) sums[i] += q[i] * q[i];
    }
    const A total = strip_sum(sums);
    if (lane % (kWarp / kStrip) == 0)
      warp_sums[warp * kHeld * columns + strip * kStrip + lane / (kWarp / kStrip)] = total;
  }
}

// The sum over the warps, in their order, of row k at column x.
template <int kHeld, class A>
__device__ A add_warps(const A* warp_sums, int k, int x, int columns) {
  A total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += warp_sums[(warp * kHeld + k) * columns + x];
  return total;
}

// part[k][c] = the sum over the chunk's pixels of weights[k][x] q(c, x); rows of `columns` weights in shared memory.
template <int kHeld, bool kStaged, class S, class A>
__device__ void chunk_sums(const Chunk<kStaged, S>& chunk, const A* weights, int rows, int columns, A* part) {
  for (int k0 = 0; k0 < rows; k0 += kHeld)
    for (int64_t c = threadIdx.x; c < chunk.channels; c += kThreads) {
      A totals[kHeld] = {};
      for (int strip = 0; strip < chunk.pixels / kStrip; ++strip) {
        A q[kStrip];
        chunk.read(strip, c, q);
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          if (k0 + k >= rows) continue;
          const Unit<A>* units = reinterpret_cast<const Unit<A>*>(weights + (k0 + k) * columns + strip * kStrip);
#pragma unroll
          for (int u = 0; u < kStrip / Unit<A>::kPixels; ++u) {
            const Unit<A> unit = units[u];
#pragma unroll
            for (int i = 0; i < Unit<A>::kPixels; ++i) totals[k] += unit.at[i] * q[u * Unit<A>::kPixels + i];
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kHeld; ++k)
        if (k0 + k < rows) part[(k0 + k) * chunk.channels + c] = totals[k];
    }
}

}  // namespace fewseg
