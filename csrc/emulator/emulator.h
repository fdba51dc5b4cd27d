// The part of CUDA that the kernels use, on the CPU: what device.h takes with -DFEWSEG_EMULATED. Every thread of a
// block is a fiber; launch() runs the kernel on the calling host thread and returns when it has finished. Misuse
// (divergent barriers, shared memory out of bounds, ...) is thrown out of launch() as a std::runtime_error.
//
//   FEWSEG_EMULATOR_ORDER=forward|reverse|shuffled   the order in which threads and blocks run
//   FEWSEG_EMULATOR_SEED=1                           of the shuffled order
//   FEWSEG_EMULATOR_DEVICE="multiprocessors=4,..."   the pretended device; keys are the members of DeviceLimits
//
// Not defined on purpose: __shared__ (SharedMemory is the only way), atomics on floating-point numbers (sums have a
// fixed order), __activemask (it has no dependable meaning on a GPU either).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "../common/storage.h"
#include "../cuda/launch_plan.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

namespace fewseg::emulator {

struct Index3 {
  unsigned x, y, z;
};

// Where a barrier was called, for reports and to tell barriers apart.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class Operation : std::uint8_t {
  kSyncThreads,
  kSyncThreadsOr,
  kSyncThreadsAnd,
  kSyncThreadsCount,
  kGridSync,
  kSyncWarp,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
};

// These return when all threads concerned have called them.
unsigned block_barrier(Operation operation, bool predicate, Site site);
void grid_barrier(Site site);
// Every lane gives a value. Shuffles return that of lane `source`, votes and ballots what they make of all.
std::uint64_t warp_operation(Operation operation, unsigned mask, std::uint64_t value, unsigned source, Site site);

// The `index`-th array that a SharedMemory hands out; `used` bytes of the plan went to those before it.
void* take_shared(int index, std::int64_t used, std::int64_t bytes);

// An asynchronous copy is made when its thread waits for it, so that reading too early finds the old contents.
void copy_later(void* to, const void* from, int bytes);
void make_copies();

void run(const LaunchPlan& plan, void (*body)(const void* arguments), const void* arguments);

[[noreturn]] void trap(Site site);

}  // namespace fewseg::emulator

// --- built-in variables -----------------------------------------------------------------------------------------

inline thread_local fewseg::emulator::Index3 threadIdx{}, blockIdx{}, blockDim{}, gridDim{};
constexpr int warpSize = 32;

// --- block and warp operations ----------------------------------------------------------------------------------

#define FEWSEG_SITE fewseg::emulator::Site site = fewseg::emulator::Site::here()

inline void __syncthreads(FEWSEG_SITE) {
  fewseg::emulator::block_barrier(fewseg::emulator::Operation::kSyncThreads, false, site);
}
inline int __syncthreads_or(int predicate, FEWSEG_SITE) {
  return int(fewseg::emulator::block_barrier(fewseg::emulator::Operation::kSyncThreadsOr, predicate != 0, site));
}
inline int __syncthreads_and(int predicate, FEWSEG_SITE) {
  return int(fewseg::emulator::block_barrier(fewseg::emulator::Operation::kSyncThreadsAnd, predicate != 0, site));
}
inline int __syncthreads_count(int predicate, FEWSEG_SITE) {
  return int(fewseg::emulator::block_barrier(fewseg::emulator::Operation::kSyncThreadsCount, predicate != 0, site));
}
inline void __syncwarp(unsigned mask = ~0u, FEWSEG_SITE) {
  fewseg::emulator::warp_operation(fewseg::emulator::Operation::kSyncWarp, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, FEWSEG_SITE) {
  return unsigned(
      fewseg::emulator::warp_operation(fewseg::emulator::Operation::kBallot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, FEWSEG_SITE) {
  return int(fewseg::emulator::warp_operation(fewseg::emulator::Operation::kAny, mask, predicate != 0, 0, site));
}
inline int __all_sync(unsigned mask, int predicate, FEWSEG_SITE) {
  return int(fewseg::emulator::warp_operation(fewseg::emulator::Operation::kAll, mask, predicate != 0, 0, site));
}

namespace fewseg::emulator {

inline unsigned lane() {
  return threadIdx.x % 32;
}

// Exactly the types that CUDA has overloads for: anything else would be converted there and not here.
template <class T>
T shuffle(Operation operation, unsigned mask, T value, unsigned source, Site site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8, "cast to int, float, ... first");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(operation, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace fewseg::emulator

// A lane whose source lies outside its segment of `width` lanes gets its own value back, as on a GPU.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FEWSEG_SITE) {
  const unsigned lane = fewseg::emulator::lane(), last = unsigned(width) - 1;
  return fewseg::emulator::shuffle(fewseg::emulator::Operation::kShuffle, mask, value,
                                   (lane & ~last) | (unsigned(source) & last), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FEWSEG_SITE) {
  const unsigned lane = fewseg::emulator::lane(), first = lane & ~(unsigned(width) - 1);
  return fewseg::emulator::shuffle(fewseg::emulator::Operation::kShuffleUp, mask, value,
                                   lane - first >= delta ? lane - delta : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FEWSEG_SITE) {
  const unsigned lane = fewseg::emulator::lane(), last = lane | (unsigned(width) - 1);
  return fewseg::emulator::shuffle(fewseg::emulator::Operation::kShuffleDown, mask, value,
                                   last - lane >= delta ? lane + delta : lane, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, FEWSEG_SITE) {
  const unsigned lane = fewseg::emulator::lane(), last = lane | (unsigned(width) - 1);
  const unsigned source = lane ^ unsigned(lane_mask);
  return fewseg::emulator::shuffle(fewseg::emulator::Operation::kShuffleXor, mask, value,
                                   source <= last ? source : lane, site);
}

[[noreturn]] inline void __trap(FEWSEG_SITE) {
  fewseg::emulator::trap(site);
}

#undef FEWSEG_SITE

// --- memory -----------------------------------------------------------------------------------------------------

// Fibers of one launch share a host thread, so memory is always in order. Nothing here could show a missing fence.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}

namespace fewseg::emulator {

template <class T, class Make>
T atomic(T* to, Make make) {
  T old = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(to, &old, make(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

}  // namespace fewseg::emulator

// Real atomics, because several host threads may launch kernels on the same memory.
#define FEWSEG_ATOMICS(T)                                                                         \
  inline T atomicAdd(T* to, T value) {                                                            \
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);                                       \
  }                                                                                               \
  inline T atomicExch(T* to, T value) {                                                           \
    return __atomic_exchange_n(to, value, __ATOMIC_RELAXED);                                      \
  }                                                                                               \
  inline T atomicAnd(T* to, T value) {                                                            \
    return __atomic_fetch_and(to, value, __ATOMIC_RELAXED);                                       \
  }                                                                                               \
  inline T atomicOr(T* to, T value) {                                                             \
    return __atomic_fetch_or(to, value, __ATOMIC_RELAXED);                                        \
  }                                                                                               \
  inline T atomicMax(T* to, T value) {                                                            \
    return fewseg::emulator::atomic(to, [=](T old) { return old < value ? value : old; });        \
  }                                                                                               \
  inline T atomicMin(T* to, T value) {                                                            \
    return fewseg::emulator::atomic(to, [=](T old) { return value < old ? value : old; });        \
  }                                                                                               \
  inline T atomicCAS(T* to, T expected, T value) {                                                \
    __atomic_compare_exchange_n(to, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    return expected;                                                                              \
  }

FEWSEG_ATOMICS(int)
FEWSEG_ATOMICS(unsigned)
FEWSEG_ATOMICS(unsigned long long)
#undef FEWSEG_ATOMICS

inline unsigned atomicInc(unsigned* to, unsigned limit) {
  return fewseg::emulator::atomic(to, [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}

// --- arithmetic -------------------------------------------------------------------------------------------------

// The overloads that CUDA has; mixed types are ambiguous here as there.
#define FEWSEG_MIN_MAX(T)  \
  inline T min(T a, T b) { \
    return b < a ? b : a;  \
  }                        \
  inline T max(T a, T b) { \
    return a < b ? b : a;  \
  }

FEWSEG_MIN_MAX(int)
FEWSEG_MIN_MAX(unsigned)
FEWSEG_MIN_MAX(long)
FEWSEG_MIN_MAX(unsigned long)
FEWSEG_MIN_MAX(long long)
FEWSEG_MIN_MAX(unsigned long long)
#undef FEWSEG_MIN_MAX

// Of a number and a NaN: the number.
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float rsqrt(float x) {
  return rsqrtf(x);
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(unsigned(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline int __float_as_int(float x) {
  return int(__float_as_uint(x));
}
inline float __int_as_float(int bits) {
  return __uint_as_float(unsigned(bits));
}

// --- what device.h defines for a GPU ----------------------------------------------------------------------------

namespace fewseg {

// As on a GPU, every object begins at the start of the block's shared memory, so that all threads get the same arrays.
// Here the arrays lie apart, with red zones between them, but are counted by the plan's rule.
class SharedMemory {
 public:
  template <class T>
  T* take(int64_t count) {
    static_assert(alignof(T) <= SharedBytes::kAlignment);
    const int64_t bytes = count * int64_t(sizeof(T));
    T* result = static_cast<T*>(emulator::take_shared(arrays_++, used_, bytes));
    used_ += SharedBytes::rounded(bytes);
    return result;
  }

 private:
  int64_t used_ = 0;
  int arrays_ = 0;
};

inline void grid_sync(emulator::Site site = emulator::Site::here()) {
  emulator::grid_barrier(site);
}

template <class T>
void copy_async(T* to, const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulator::copy_later(to, from, sizeof(T));
}
inline void copies_done() {
  emulator::make_copies();
}

inline float product(float a, float b) {
  return a * b;
}
inline double product(double a, double b) {
  return a * b;
}

using Stream = void*;

template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), const LaunchPlan& plan, Stream, Args... args) {
  using Values = std::tuple<Parameters...>;
  struct Call {
    void (*kernel)(Parameters...);
    Values values;
  };
  const Call call{kernel, Values(args...)};
  emulator::run(
      plan,
      [](const void* data) {
        const Call& call = *static_cast<const Call*>(data);
        std::apply(call.kernel, call.values);
      },
      &call);
}

// The pretended device.
DeviceLimits device_limits();

inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
  float result;
  uint32_t bits = magnitude << 13;
  if (magnitude >= 0x7C00) {
    bits += 0x70000000;  // infinity and NaN: the largest exponent of either type
    std::memcpy(&result, &bits, 4);
  } else {
    std::memcpy(&result, &bits, 4);
    result *= 0x1p112f;  // the difference of the exponents' biases; exact, and right for subnormal numbers too
  }
  std::memcpy(&bits, &result, 4);
  bits |= sign;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline void narrow(float x, Half& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(x);
  uint32_t result;
  if (!(magnitude < 65520.0f)) {
    result = x != x ? 0x7FFF : 0x7C00;  // 65520 is half-way to what would be the next number: rounds to infinity
  } else if (magnitude < 0x1p-14f) {
    result = uint32_t(std::nearbyint(magnitude * 0x1p24f));  // subnormal: a multiple of 2^-24
  } else {
    bits &= 0x7FFFFFFF;
    bits += 0xFFF + ((bits >> 13) & 1);  // round to nearest, ties to even
    result = (bits - 0x38000000) >> 13;
  }
  to.bits = uint16_t(sign | result);
}

}  // namespace fewseg
