// What z adds to the convolution of the features, and the sums of the gradient that belong to it. The products with the
// weight are those of features.cuh.
#pragma once

#include "../common/tap_axis.h"
#include "reduce.cuh"
#include "tiled_conv2d_launch.h"

namespace fewseg {

// The result [N][O][h][w], or with channels_last [N][h][w][O]; sample n belongs to task n / L.
struct TiledGrid {
  TapAxis rows, columns;
  int64_t N, L, O, h, w;
  int row_classes, column_classes;

  __device__ int64_t entries() const { return int64_t(row_classes) * column_classes; }
  __device__ int64_t taps() const { return rows.taps * columns.taps; }
};

// The taps inside for an axis' class; none for a class without outputs.
__device__ inline bool taps_inside(const TapAxis& axis, int64_t c, int64_t& first, int64_t& last) {
  const int64_t begin = axis.class_begin(c);
  first = last = 0;
  if (begin >= axis.outputs() || axis.class_of(begin) != c) return false;
  first = axis.first_tap(begin);
  last = axis.last_tap(begin);
  return true;
}

// table[n][row class][column class][o] = bias[o] + the sum of by_tap[n][o][tap] over the taps inside. One thread per
// entry.
template <class A>
__global__ void z_table_kernel(TiledGrid grid, const A* by_tap, const A* bias, A* table) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= grid.N * grid.entries() * grid.O) return;
  const int64_t o = index % grid.O, entry = index / grid.O % grid.entries(), n = index / grid.O / grid.entries();
  int64_t top, bottom, left, right;
  taps_inside(grid.rows, entry / grid.column_classes, top, bottom);
  taps_inside(grid.columns, entry % grid.column_classes, left, right);
  const A* tap = by_tap + (n * grid.O + o) * grid.taps();
  A total = bias ? bias[o] : A(0);
  for (int64_t y = top; y < bottom; ++y)
    for (int64_t x = left; x < right; ++x) total += tap[y * grid.columns.taps + x];
  table[index] = total;
}

// result[n] = base[task of n] + the table's entry of each pixel's classes. A block takes a piece of one sample.
template <bool kChannelsLast, class S, class A>
__global__ void add_table_kernel(TiledGrid grid, const S* base, const A* table, S* result) {
  SharedMemory shared;
  int* row_class = shared.take<int>(grid.h);
  int* column_class = shared.take<int>(grid.w);
  for (int64_t y = threadIdx.x; y < grid.h; y += blockDim.x) row_class[y] = int(grid.rows.class_of(y));
  for (int64_t x = threadIdx.x; x < grid.w; x += blockDim.x) column_class[x] = int(grid.columns.class_of(x));
  __syncthreads();
  const int64_t n = blockIdx.y, volume = grid.O * grid.h * grid.w;
  const S* from = base + n / grid.L * volume;
  S* to = result + n * volume;
  const A* entries = table + n * grid.entries() * grid.O;
  for (int step = 0; step < kElementsPerThread; ++step) {
    const int64_t i = (int64_t(blockIdx.x) * kElementsPerThread + step) * blockDim.x + threadIdx.x;
    if (i >= volume) return;
    int64_t o, pixel;
    if (kChannelsLast) {
      o = i % grid.O;
      pixel = i / grid.O;
    } else {
      pixel = i % (grid.h * grid.w);
      o = i / (grid.h * grid.w);
    }
    const int entry = row_class[pixel / grid.w] * grid.column_classes + column_class[pixel % grid.w];
    narrow(widen(from[i]) + entries[entry * grid.O + o], to[i]);
  }
}

// d_base[task][i] = sum over the task's samples of gradient[n][i]. One thread per element.
template <class S, class A>
__global__ void sum_samples_kernel(const S* gradient, int64_t tasks, int64_t samples, int64_t volume, S* d_base) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= tasks * volume) return;
  const S* from = gradient + index / volume * samples * volume + index % volume;
  A total = 0;
  for (int64_t l = 0; l < samples; ++l) total += widen(from[l * volume]);
  narrow(total, d_base[index]);
}

// sums[n][row class][column class][o] = the gradient summed over the pixels of the classes: a rectangle. NCHW: a block
// per output channel; channels-last: 32 of them, a lane each, the warps share the pixels.
template <bool kChannelsLast, class S, class A>
__global__ void sum_classes_kernel(TiledGrid grid, const S* gradient, A* sums) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kChannelsLast ? kWarps * kWarp : kWarp);
  const int64_t n = blockIdx.x / grid.entries(), entry = blockIdx.x % grid.entries();
  const int64_t r = entry / grid.column_classes, c = entry % grid.column_classes;
  const int64_t top = grid.rows.class_begin(r), left = grid.columns.class_begin(c);
  const int64_t width = grid.columns.class_begin(c + 1) - left;
  const int64_t count = (grid.rows.class_begin(r + 1) - top) * width;
  A* to = sums + (n * grid.entries() + entry) * grid.O;
  const auto pixel = [&](int64_t i) { return (top + i / width) * grid.w + left + i % width; };
  if (kChannelsLast) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int64_t o = int64_t(blockIdx.y) * kWarp + lane;
    A mine = 0;
    if (o < grid.O)
      for (int64_t i = warp; i < count; i += kWarps)
        mine += widen(gradient[(n * grid.h * grid.w + pixel(i)) * grid.O + o]);
    scratch[warp * kWarp + lane] = mine;
    __syncthreads();
    if (warp > 0 || o >= grid.O) return;
    A total = 0;
    for (int i = 0; i < kWarps; ++i) total += scratch[i * kWarp + lane];
    to[o] = total;
  } else {
    const int64_t o = blockIdx.y;
    const S* plane = gradient + (n * grid.O + o) * grid.h * grid.w;
    A mine = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) mine += widen(plane[pixel(i)]);
    const A total = block_sum(mine, scratch);
    if (threadIdx.x == 0) to[o] = total;
  }
}

// by_tap[n][o][tap] = the sum of `sums` over the classes that have the tap inside. One thread per number.
template <class A>
__global__ void sum_taps_kernel(TiledGrid grid, const A* sums, A* by_tap) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= grid.N * grid.O * grid.taps()) return;
  const int64_t tap = index % grid.taps(), o = index / grid.taps() % grid.O, n = index / grid.taps() / grid.O;
  const int64_t tap_y = tap / grid.columns.taps, tap_x = tap % grid.columns.taps;
  A total = 0;
  for (int r = 0; r < grid.row_classes; ++r) {
    int64_t first, last;
    if (!taps_inside(grid.rows, r, first, last) || tap_y < first || tap_y >= last) continue;
    for (int c = 0; c < grid.column_classes; ++c) {
      if (!taps_inside(grid.columns, c, first, last) || tap_x < first || tap_x >= last) continue;
      total += sums[((n * grid.row_classes + r) * grid.column_classes + c) * grid.O + o];
    }
  }
  by_tap[index] = total;
}

// d_bias[o] = the sum of `sums` over samples and classes. One thread per channel.
template <class A>
__global__ void bias_gradient_kernel(TiledGrid grid, const A* sums, A* d_bias) {
  const int64_t o = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (o >= grid.O) return;
  double total = 0;
  for (int64_t i = 0; i < grid.N * grid.entries(); ++i) total += double(sums[i * grid.O + o]);
  d_bias[o] = A(total);
}

}  // namespace fewseg
