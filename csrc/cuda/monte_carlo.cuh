// The mean of the softmaxes of L samples, and their spread. Logits are interpolated where they are needed; a thread
// keeps a few classes of its pixel in registers, more classes take further rounds over the samples.
#pragma once

#include "resize.cuh"

namespace fewseg {

// logits [tasks][L][K][H][W], looked at from results [tasks][..][h][w].
template <class A>
struct SampleLogits {
  const A* logits;
  int samples, classes;
  int64_t tasks, H, W, h, w;

  __device__ A at(int64_t task, int l, int k, const BilinearTap& row, const BilinearTap& column) const {
    return bilinear_value(logits + ((task * samples + l) * classes + k) * H * W, W, row, column);
  }
};

// What a softmax divides by: p_k = exp(z_k - top) / total. around = sum_k p_k (z_k - top), for the entropy
// log(total) - around.
template <class A>
struct Softmax {
  A top, total, around;
};

// A logit this far below the largest has probability 0 all the same; infinitely far would give an entropy inf times 0.
template <class A>
__device__ inline A bounded(A below_top) {
  return below_top < A(-1e4) ? A(-1e4) : below_top;
}

// One pass over the classes: the sums are rescaled whenever a larger logit turns up.
template <class A>
__device__ Softmax<A> softmax_of(const SampleLogits<A>& in, int64_t task, int l, const BilinearTap& row,
                                 const BilinearTap& column) {
  A top = in.at(task, l, 0, row, column), total = 1, around = 0;
  for (int k = 1; k < in.classes; ++k) {
    const A z = in.at(task, l, k, row, column);
    if (z > top) {
      const A factor = exp(top - z);
      around = factor * (around + total * bounded(top - z));
      total = total * factor + 1;
      top = z;
    } else {
      const A e = exp(z - top);
      around += e * bounded(z - top);
      total += e;
    }
  }
  return {top, total, around / total};
}

// One thread per pixel of the result. variance, entropy and mutual_information are null for mc_average.
template <int kHeld, class A>
__global__ void average_samples_kernel(SampleLogits<A> in, A* probabilities, A* variance, A* entropy,
                                       A* mutual_information) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, plane = in.h * in.w;
  if (index >= in.tasks * plane) return;
  const int64_t task = index / plane, pixel = index % plane;
  const BilinearTap row = bilinear_tap(pixel / in.w, in.H, in.h), column = bilinear_tap(pixel % in.w, in.W, in.w);
  const A part = A(1) / A(in.samples);
  A of_mean = 0, of_samples = 0;  // entropies
  for (int first = 0; first < in.classes; first += kHeld) {
    A sum[kHeld] = {}, running[kHeld] = {}, squares[kHeld] = {};
    for (int l = 0; l < in.samples; ++l) {
      const Softmax<A> softmax = softmax_of(in, task, l, row, column);
      if (entropy && first == 0) of_samples += part * (log(softmax.total) - softmax.around);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (first + k >= in.classes) continue;
        const A p = exp(in.at(task, l, first + k, row, column) - softmax.top) / softmax.total;
        sum[k] += p;
        if (!entropy) continue;
        // Welford: sums of squared differences that never cancel.
        const A difference = p - running[k];
        running[k] += difference / A(l + 1);
        squares[k] += difference * (p - running[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (first + k >= in.classes) continue;
      const A mean = sum[k] * part;
      const int64_t to = (task * in.classes + first + k) * plane + pixel;
      probabilities[to] = mean;
      if (!entropy) continue;
      variance[to] = squares[k] * part;
      of_mean -= mean * log(mean < A(1e-30) ? A(1e-30) : mean);  // 0 log 0 is 0
    }
  }
  if (!entropy) return;
  // Jensen: negative by rounding only. NaN stays NaN.
  of_mean = of_mean < 0 ? A(0) : of_mean;
  const A information = of_mean - of_samples;
  entropy[index] = of_mean;
  mutual_information[index] = information < 0 ? A(0) : information;
}

// pulled[task][l][k][i][x] = sum over the result's rows y that touch row i of the logits, of their share times the
// gradient of the mean to the logits at (y, x). One thread per (task, l, i, x); gradient [tasks][K][h][w].
template <class A>
__global__ void average_gradient_kernel(SampleLogits<A> in, const A* gradient, A* pulled) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= in.tasks * in.samples * in.H * in.w) return;
  const int64_t x = index % in.w, i = index / in.w % in.H, task = index / (in.w * in.H * in.samples);
  const int l = int(index / (in.w * in.H) % in.samples);
  const BilinearTap column = bilinear_tap(x, in.W, in.w);
  const A part = A(1) / A(in.samples);
  const int64_t plane = in.h * in.w, pulled_plane = in.H * in.w;
  A* out = pulled + (((task * in.samples + l) * in.classes) * in.H + i) * in.w + x;
  for (int k = 0; k < in.classes; ++k) out[k * pulled_plane] = 0;
  const Range rows = adjoint_range(i, in.H, in.h);
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const A share = A(bilinear_share(y, i, in.H, in.h));
    if (share == 0) continue;
    const BilinearTap row = bilinear_tap(y, in.H, in.h);
    const A* g = gradient + task * in.classes * plane + y * in.w + x;
    const Softmax<A> softmax = softmax_of(in, task, l, row, column);
    A along = 0;
    for (int k = 0; k < in.classes; ++k)
      along += g[k * plane] * exp(in.at(task, l, k, row, column) - softmax.top) / softmax.total;
    for (int k = 0; k < in.classes; ++k) {
      const A p = exp(in.at(task, l, k, row, column) - softmax.top) / softmax.total;
      out[k * pulled_plane] += share * part * p * (g[k * plane] - along);
    }
  }
}

}  // namespace fewseg
