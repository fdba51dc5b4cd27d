// Bilinear resizing of planes (align_corners=False), and its adjoint as a gather in fixed order: the GPU's counterpart
// of common/bilinear.h, with the weights computed where they are needed.
#pragma once

#include "device.h"

namespace fewseg {

// One axis, resized from `from` samples to `to`: sample o of the result is (1 - fraction) input[lower] + fraction
// input[lower + 1].
struct BilinearTap {
  int64_t lower;
  double fraction;
};

__device__ inline BilinearTap bilinear_tap(int64_t o, int64_t from, int64_t to) {
  const double source = (double(o) + 0.5) * double(from) / double(to) - 0.5;
  if (source <= 0) return {0, 0.0};
  const int64_t lower = int64_t(source);
  return {lower, lower + 1 < from ? source - double(lower) : 0.0};
}

// What a plane of rows of `width` has between the rows and columns of two taps.
template <class A>
__device__ inline A bilinear_value(const A* plane, int64_t width, const BilinearTap& row, const BilinearTap& column) {
  const A* at = plane + row.lower * width + column.lower;
  const A fy = A(row.fraction), fx = A(column.fraction);
  // A fraction of zero may belong to the last row or column, which has no neighbour.
  A value = (1 - fx) * at[0];
  if (fx != 0) value += fx * at[1];
  if (fy != 0) {
    A below = (1 - fx) * at[width];
    if (fx != 0) below += fx * at[width + 1];
    value = (1 - fy) * value + fy * below;
  }
  return value;
}

// The samples of the result that may touch input sample i: begin..end. A little wider than exact; bilinear_share says
// how much each really has.
struct Range {
  int64_t begin, end;
};

__device__ inline Range adjoint_range(int64_t i, int64_t from, int64_t to) {
  const double ratio = double(to) / double(from);
  // Touched where the source coordinate lies in (i - 1, i + 1); the first and last sample also take what lies outside.
  int64_t begin = i == 0 ? 0 : int64_t((double(i) - 0.5) * ratio - 0.5) - 1;
  int64_t end = i == from - 1 ? to : int64_t((double(i) + 1.5) * ratio - 0.5) + 2;
  return {begin < 0 ? 0 : begin, end > to ? to : end};
}

__device__ inline double bilinear_share(int64_t o, int64_t i, int64_t from, int64_t to) {
  const BilinearTap tap = bilinear_tap(o, from, to);
  return tap.lower == i ? 1 - tap.fraction : tap.lower + 1 == i ? tap.fraction : 0.0;
}

// planes [P][in_h][in_w] -> [P][out_h][out_w]: the resize, or with `adjoint` the transpose of the resize from the
// output's grid to the input's. One thread per output pixel.
template <class In, class A>
__global__ void resize_kernel(const In* input, int64_t planes, int64_t in_h, int64_t in_w, int64_t out_h, int64_t out_w,
                              bool adjoint, A* output) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= planes * out_h * out_w) return;
  const int64_t x = index % out_w, y = index / out_w % out_h;
  const In* plane = input + index / (out_w * out_h) * in_h * in_w;
  A total = 0;
  if (adjoint) {
    const Range rows = adjoint_range(y, out_h, in_h), columns = adjoint_range(x, out_w, in_w);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const A share = A(bilinear_share(i, y, out_h, in_h));
      A row = 0;
      for (int64_t j = columns.begin; j < columns.end; ++j)
        row += A(bilinear_share(j, x, out_w, in_w)) * A(plane[i * in_w + j]);
      total += share * row;
    }
  } else {
    const BilinearTap row = bilinear_tap(y, in_h, out_h), column = bilinear_tap(x, in_w, out_w);
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const double share = (i ? row.fraction : 1 - row.fraction) * (j ? column.fraction : 1 - column.fraction);
        if (share != 0) total += A(share) * A(plane[(row.lower + i) * in_w + column.lower + j]);
      }
  }
  output[index] = total;
}

}  // namespace fewseg
