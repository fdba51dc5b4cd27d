// The prototypes' side of the cosine operators; the features' side is in features.cuh.
#pragma once

#include "reduce.cuh"

namespace fewseg {

// unit[k] = P_k / |P_k| and 1/|P_k| (0 for a zero prototype). One block per prototype.
template <class A>
__global__ void unit_prototypes_kernel(const A* prototypes, int64_t channels, A* unit, A* inverse_norm) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kWarp);
  const A* p = prototypes + blockIdx.x * channels;
  A mine = 0;
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) mine += p[c] * p[c];
  const A inverse = inverse_root(block_sum(mine, scratch));
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) unit[blockIdx.x * channels + c] = p[c] * inverse;
  if (threadIdx.x == 0) inverse_norm[blockIdx.x] = inverse;
}

// sums[k] = H_k -> dP_k = (H_k - (p_k . H_k) p_k) / |P_k|, in place. One block per prototype.
template <class A>
__global__ void project_out_kernel(const A* unit, const A* inverse_norm, int64_t channels, A* sums) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kWarp);
  const A* p = unit + blockIdx.x * channels;
  A* h = sums + blockIdx.x * channels;
  A mine = 0;
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) mine += p[c] * h[c];
  const A along = block_sum(mine, scratch);
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) h[c] = (h[c] - along * p[c]) * inverse_norm[blockIdx.x];
}

// From factor * dLoss/dc [tasks][K][N]: d_cosine = that / |q|, and own[x] = -sum_k d_cosine_k c_k / |q|. One thread per
// pixel.
template <class A>
__global__ void cosine_gradient_kernel(const A* gradient, A factor, const A* cosine, const A* inverse_norm,
                                       int64_t tasks, int classes, int64_t pixels, A* d_cosine, A* own) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= tasks * pixels) return;
  const int64_t task = index / pixels, x = index % pixels;
  const A inverse = inverse_norm[index];
  A total = 0;
  for (int k = 0; k < classes; ++k) {
    const int64_t at = (task * classes + k) * pixels + x;
    const A d = factor * gradient[at] * inverse;
    d_cosine[at] = d;
    total -= d * cosine[at] * inverse;
  }
  own[index] = total;
}

// logits = scale * cosine. One thread per element.
template <class A>
__global__ void scale_kernel(const A* input, A scale, int64_t count, A* output) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < count) output[index] = scale * input[index];
}

}  // namespace fewseg
