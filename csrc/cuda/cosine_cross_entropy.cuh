// Cross-entropy of upsampled cosines. A target pixel's K logits are interpolated where they are needed and never
// stored; the backward pulls the residuals down along y as it computes them, so nothing of the size K x h x w exists.
#pragma once

#include "reduce.cuh"
#include "resize.cuh"

namespace fewseg {

// A batch of cosines [tasks][K][H][W] looked at from targets [tasks][h][w]; labels are -1 where ignored.
template <class A>
struct UpsampledCosines {
  const A* cosine;
  int classes;
  int64_t H, W, h, w;
  const int32_t* labels;
  A scale;

  // scale * the cosine of class k, between the feature rows and columns of two taps.
  __device__ A logit(int64_t task, int k, const BilinearTap& row, const BilinearTap& column) const {
    return scale * bilinear_value(cosine + (task * classes + k) * H * W, W, row, column);
  }
};

// The loss of each target row, weighted and summed: row_loss[task][y] = weight[task] * sum_x CE. One block per row.
template <class A>
__global__ void loss_rows_kernel(UpsampledCosines<A> target, const A* weight, double* row_loss) {
  SharedMemory shared;
  double* scratch = shared.take<double>(kWarp);
  const int64_t task = blockIdx.x / target.h, y = blockIdx.x % target.h;
  const BilinearTap row = bilinear_tap(y, target.H, target.h);
  double mine = 0;
  for (int64_t x = threadIdx.x; x < target.w; x += blockDim.x) {
    const int32_t label = target.labels[(task * target.h + y) * target.w + x];
    if (label < 0) continue;
    const BilinearTap column = bilinear_tap(x, target.W, target.w);
    // One pass over the classes: the sum is rescaled whenever a larger logit turns up.
    A top = target.logit(task, 0, row, column), total = 1, at_label = top;
    for (int k = 1; k < target.classes; ++k) {
      const A z = target.logit(task, k, row, column);
      if (k == label) at_label = z;
      if (z > top) {
        total = total * exp(top - z) + 1;
        top = z;
      } else {
        total += exp(z - top);
      }
    }
    mine += double(top - at_label + log(total));
  }
  const double sum = block_sum(mine, scratch);
  // Multiplied even where nothing is valid: the weight of a task with a wrong label is NaN.
  if (threadIdx.x == 0) row_loss[blockIdx.x] = sum * double(weight[task]);
}

// loss[task] = sum_y row_loss[task][y], or with `together` loss[0] over all tasks. One block.
template <class A>
__global__ void sum_rows_kernel(const double* row_loss, int64_t tasks, int64_t rows, bool together, A* loss) {
  SharedMemory shared;
  double* scratch = shared.take<double>(kWarp);
  double all = 0;
  for (int64_t task = 0; task < tasks; ++task) {
    double mine = 0;
    for (int64_t y = threadIdx.x; y < rows; y += blockDim.x) mine += row_loss[task * rows + y];
    const double sum = block_sum(mine, scratch);
    all += sum;
    if (!together && threadIdx.x == 0) loss[task] = A(sum);
  }
  if (together && threadIdx.x == 0) loss[0] = A(all);
}

// pulled[task][k][i][x] = sum over the target rows y that touch feature row i of their share times the residual
// s_k - [t = k] at (y, x), times the task's weight and gradient. One thread per (task, i, x); every target row is
// computed for both feature rows that it lies between.
template <class A>
__global__ void residual_kernel(UpsampledCosines<A> target, int64_t tasks, const A* weight, const A* gradient,
                                bool gradient_per_task, A* pulled) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= tasks * target.H * target.w) return;
  const int64_t x = index % target.w, i = index / target.w % target.H, task = index / (target.w * target.H);
  const BilinearTap column = bilinear_tap(x, target.W, target.w);
  const A factor = weight[task] * gradient[gradient_per_task ? task : 0] * target.scale;
  A* out = pulled + (task * target.classes * target.H + i) * target.w + x;
  const int64_t plane = target.H * target.w;
  for (int k = 0; k < target.classes; ++k) out[k * plane] = 0 * factor;  // NaN where the factor is
  const Range rows = adjoint_range(i, target.H, target.h);
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const int32_t label = target.labels[(task * target.h + y) * target.w + x];
    const A share = A(bilinear_share(y, i, target.H, target.h));
    if (label < 0 || share == 0) continue;
    const BilinearTap row = bilinear_tap(y, target.H, target.h);
    A top = target.logit(task, 0, row, column), total = 1;
    for (int k = 1; k < target.classes; ++k) {
      const A z = target.logit(task, k, row, column);
      if (z > top) {
        total = total * exp(top - z) + 1;
        top = z;
      } else {
        total += exp(z - top);
      }
    }
    for (int k = 0; k < target.classes; ++k) {
      const A s = exp(target.logit(task, k, row, column) - top) / total;
      out[k * plane] += factor * share * (s - (label == k ? A(1) : A(0)));
    }
  }
}

}  // namespace fewseg
