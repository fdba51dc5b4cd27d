// Masked average pooling: the masks are brought to the features' grid (resize.cuh), each feature value is read once
// (pool_kernel of features.cuh). What is left are sums over a plane of weights.
#pragma once

#include "reduce.cuh"

namespace fewseg {

// weights[plane][x] /= sum_x weights[plane][x] + eps, and 1 over that sum. One block per plane.
template <class A>
__global__ void normalise_weights_kernel(A* weights, int64_t pixels, double eps, A* inverse_mass) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kWarp);
  A* plane = weights + blockIdx.x * pixels;
  A mine = 0;
  for (int64_t x = threadIdx.x; x < pixels; x += blockDim.x) mine += plane[x];
  const A mass = block_sum(mine, scratch) + A(eps);
  // A mass that has overflowed makes NaN: as 1/inf it would pass for an empty mask.
  const A inverse = mass != 0 ? A(1) / mass + A(0) * mass : A(0);
  for (int64_t x = threadIdx.x; x < pixels; x += blockDim.x) plane[x] *= inverse;
  if (threadIdx.x == 0) inverse_mass[blockIdx.x] = inverse;
}

// d[plane][x] = (d[plane][x] - sum_y weights[plane][y] d[plane][y]) * inverse_mass: the gradient to the weights before
// they were divided. One block per plane.
template <class A>
__global__ void weights_backward_kernel(const A* weights, const A* inverse_mass, int64_t pixels, A* d) {
  SharedMemory shared;
  A* scratch = shared.take<A>(kWarp);
  const A* plane = weights + blockIdx.x * pixels;
  A* out = d + blockIdx.x * pixels;
  A mine = 0;
  for (int64_t x = threadIdx.x; x < pixels; x += blockDim.x) mine += plane[x] * out[x];
  const A along = block_sum(mine, scratch);
  for (int64_t x = threadIdx.x; x < pixels; x += blockDim.x) out[x] = (out[x] - along) * inverse_mass[blockIdx.x];
}

}  // namespace fewseg
