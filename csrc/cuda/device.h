// What kernels (*.cuh) are written against, on a GPU and in the emulator: the CUDA built-ins, and the few helpers
// below. Kernels include nothing else of CUDA and nothing of torch, so that the emulator runs the very same text on the
// CPU.
#pragma once

#include <cstdint>

#include "../common/storage.h"
#include "launch_plan.h"

#ifdef FEWSEG_EMULATED
#include "../emulator/emulator.h"  // __global__, threadIdx, __syncthreads(), ..., SharedMemory, grid_sync(), launch()
#else

#include <cooperative_groups.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>

namespace fewseg {

// The only way to shared memory. A kernel takes its arrays one after another, in the order in which its launch plan
// counted them (SharedBytes in launch_plan.h).
class SharedMemory {
 public:
  template <class T>
  __device__ T* take(int64_t count) {
    extern __shared__ __align__(16) unsigned char shared[];
    T* result = reinterpret_cast<T*>(shared + used_);
    // SharedBytes::rounded, which a device function cannot call.
    constexpr int64_t kAlignment = SharedBytes::kAlignment;
    used_ += (count * int64_t(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return result;
  }

 private:
  int64_t used_ = 0;
};

// Waits for all threads of a cooperative launch. CUDA's own barrier: it releases what every thread wrote before it and
// acquires it for every thread after it, so kernels need no fence beside it, and it leaves nothing behind that a
// replayed graph would have to reset.
__device__ inline void grid_sync() {
  cooperative_groups::this_grid().sync();
}

// Copies a value of 4, 8 or 16 bytes from global to shared memory, on sm_80 and later without a register between and
// without waiting. Nothing may be read before copies_done() and then a barrier.
template <class T>
__device__ inline void copy_async(T* to, const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  __pipeline_memcpy_async(to, from, sizeof(T));
}

// Waits for the calling thread's own copies.
__device__ inline void copies_done() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// A product with a rounding of its own. Elsewhere the compiler may round a * b + c once, and which of two products in
// a sum it takes for that is its choice in every kernel anew.
__device__ inline float product(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ inline double product(double a, double b) {
  return __dmul_rn(a, b);
}

using Stream = cudaStream_t;

inline void check_launch(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA kernel launch failed: ") + cudaGetErrorString(error));
}

// Of the current device.
inline DeviceLimits device_limits() {
  int device = 0;
  check_launch(cudaGetDevice(&device));
  const auto attribute = [device](cudaDeviceAttr name) {
    int value = 0;
    check_launch(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor), attribute(cudaDevAttrMaxRegistersPerMultiprocessor),
          attribute(cudaDevAttrMaxThreadsPerMultiProcessor)};
}

// Launches by the plan. More shared memory than 48 KB has to be asked for first.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), const LaunchPlan& plan, Stream stream, Args... args) {
  const dim3 grid(plan.grid_x, plan.grid_y, plan.grid_z), block(plan.block);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (plan.shared_bytes > 48 * 1024)
    check_launch(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(plan.shared_bytes)));
  std::tuple<Parameters...> values(args...);
  void* pointers[sizeof...(Parameters)];
  std::apply(
      [&](auto&... value) {
        int i = 0;
        ((pointers[i++] = const_cast<void*>(static_cast<const void*>(&value))), ...);
      },
      values);
  check_launch(plan.cooperative
                   ? cudaLaunchCooperativeKernel(function, grid, block, pointers, plan.shared_bytes, stream)
                   : cudaLaunchKernel(function, grid, block, pointers, plan.shared_bytes, stream));
}

__device__ inline float widen(Half x) {
  return __half2float(__ushort_as_half(x.bits));
}
__device__ inline void narrow(float x, Half& to) {
  to.bits = __half_as_ushort(__float2half_rn(x));
}

}  // namespace fewseg
#endif

namespace fewseg {

__device__ inline float widen(float x) {
  return x;
}
__device__ inline double widen(double x) {
  return x;
}
__device__ inline float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

__device__ inline void narrow(float x, float& to) {
  to = x;
}
__device__ inline void narrow(double x, double& to) {
  to = x;
}
__device__ inline void narrow(float x, BFloat16& to) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits += 0x7FFF + ((bits >> 16) & 1);  // round to nearest, ties to even
  to.bits = x != x ? uint16_t(0x7FC0) : uint16_t(bits >> 16);
}

constexpr int kWarp = 32;

}  // namespace fewseg
