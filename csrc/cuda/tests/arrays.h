// What the driver keeps its numbers in, on a GPU and in the emulator.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../device.h"

namespace driver {

using namespace fewseg;

#ifdef FEWSEG_EMULATED
inline void* allocate(size_t bytes) {
  return std::calloc(1, bytes);
}
inline void release(void* pointer) {
  std::free(pointer);
}
inline void copy(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}
#else
inline void* allocate(size_t bytes) {
  void* pointer = nullptr;
  check_launch(cudaMalloc(&pointer, bytes));
  check_launch(cudaMemset(pointer, 0, bytes));
  return pointer;
}
inline void release(void* pointer) {
  check_launch(cudaFree(pointer));
}
inline void copy(void* to, const void* from, size_t bytes) {
  check_launch(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
#endif

// Device memory of its own for every array, so that an access beyond one is seen.
template <class Value>
class Array {
 public:
  explicit Array(int64_t count) : count_(count), data_(static_cast<Value*>(allocate(count * sizeof(Value)))) {}
  // Numbers in -1..1, or integers below `limit`.
  Array(int64_t count, int seed, int limit = 1) : Array(count) {
    std::vector<Value> values(count);
    uint32_t state = uint32_t(seed) * 2654435761u + 1;
    for (Value& value : values) {
      state = state * 1664525u + 1013904223u;
      if constexpr (std::is_integral_v<Value>) {
        value = Value((state >> 8) % limit);
      } else if constexpr (std::is_floating_point_v<Value>) {
        value = Value((state >> 8) / 8388608.0 - 1);
      } else {  // bfloat16: a float's upper half
        const float number = float((state >> 8) / 8388608.0 - 1);
        std::memcpy(&value, reinterpret_cast<const char*>(&number) + 2, 2);
      }
    }
    copy(data_, values.data(), count * sizeof(Value));
  }
  ~Array() { release(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  operator Value*() const { return data_; }  // NOLINT(google-explicit-constructor)

  std::vector<Value> read() const {
    std::vector<Value> values(count_);
    copy(values.data(), data_, count_ * sizeof(Value));
    return values;
  }

 private:
  int64_t count_;
  Value* data_;
};

inline int failures = 0;

// Runs `body` twice; the two results must have the same bits and be finite.
template <class Value, class Body>
void twice(const char* name, const Array<Value>& result, const Body& body) {
  body();
  const std::vector<Value> first = result.read();
  body();
  const std::vector<Value> second = result.read();
  double sum = 0;
  for (const Value value : first) sum += double(value);
  const bool same = std::memcmp(first.data(), second.data(), first.size() * sizeof(Value)) == 0;
  if (!same || sum != sum) ++failures;
  std::printf("%-28s %12.6f%s\n", name, sum, same ? "" : "  DIFFERS");
}

}  // namespace driver
