// The shared memory of one block: arrays with red zones around them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../cuda/launch_plan.h"
#include "fiber.h"  // FEWSEG_ASAN

namespace fewseg::emulator {

class BlockMemory {
 public:
  // Empty again; nothing is filled before it is taken.
  void start(int64_t plan_bytes) {
    plan_bytes_ = plan_bytes;
    const int64_t needed = plan_bytes + kZone * (kMaxArrays + 1);
    if (needed > capacity_) {
      poison(false, 0, capacity_);
      buffer_.reset(new Unit[std::size_t(needed) / sizeof(Unit) + 1]);
      capacity_ = needed;
    }
    poison(true, 0, capacity_);
    arrays_.clear();
    begins_ = kZone;
  }

  ~BlockMemory() { poison(false, 0, capacity_); }
  BlockMemory() = default;
  BlockMemory(const BlockMemory&) = delete;
  BlockMemory& operator=(const BlockMemory&) = delete;

  // Returns null, and says why in `error`, where the plan or another thread disagrees.
  void* take(int index, int64_t used, int64_t bytes, std::string& error) {
    if (index < int(arrays_.size())) {
      if (arrays_[index].bytes == bytes) return at(arrays_[index].begin);
      error = "takes " + std::to_string(bytes) + " bytes as shared array " + std::to_string(index) +
              ", where another take was of " + std::to_string(arrays_[index].bytes) + " bytes";
      return nullptr;
    }
    if (bytes < 0 || used + SharedBytes::rounded(bytes) > plan_bytes_) {
      error = "takes " + std::to_string(bytes) + " bytes of shared memory as array " + std::to_string(index) +
              " after " + std::to_string(used) + " bytes, but the launch plan has " + std::to_string(plan_bytes_);
      return nullptr;
    }
    if (index >= kMaxArrays) {
      error = "takes more than " + std::to_string(kMaxArrays) + " shared arrays, which the emulator has no room for";
      return nullptr;
    }
    const int64_t begin = begins_, end = begin + SharedBytes::rounded(bytes) + kZone;
    poison(false, index == 0 ? 0 : begin, end);
    std::fill(word(index == 0 ? 0 : begin), word(end), kPattern);
    poison(true, 0, kZone);
    poison(true, begin + bytes, end);
    arrays_.push_back({begin, bytes});
    begins_ = end;
    return at(begin);
  }

  // What was written outside of the arrays; empty if nothing.
  std::string damage() const {
#ifndef FEWSEG_ASAN  // with it such a write has been reported already, and the zones must not even be read
    if (arrays_.empty()) return {};
    if (const int64_t wrong = first_change(0, kZone); wrong >= 0)
      return "shared array 0 was written at byte " + std::to_string(wrong - kZone) + ", before its start";
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      const int64_t begin = arrays_[i].begin, end = begin + arrays_[i].bytes;
      const int64_t next = begin + SharedBytes::rounded(arrays_[i].bytes) + kZone;
      const int64_t wrong = first_change(end, next);
      if (wrong < 0) continue;
      std::string text = "shared array " + std::to_string(i) + " was written at byte " + std::to_string(wrong - begin) +
                         ", past its " + std::to_string(arrays_[i].bytes) + " bytes";
      if (i + 1 < arrays_.size())
        text += " (or array " + std::to_string(i + 1) + " at byte " + std::to_string(wrong - next) + ")";
      return text;
    }
#endif
    return {};
  }

 private:
  // Not a number in all floating-point types, and no plausible integer: for memory that nobody has written yet and for
  // red zones alike.
  static constexpr uint32_t kPattern = 0xFFFEFFFD;
  static constexpr int64_t kZone = 256;  // also covers being off by one row of 64 floats
  static constexpr int kMaxArrays = 64;

  struct alignas(64) Unit {
    unsigned char bytes[64];
  };
  struct Array {
    int64_t begin, bytes;
  };

  unsigned char* at(int64_t offset) const { return reinterpret_cast<unsigned char*>(buffer_.get()) + offset; }
  uint32_t* word(int64_t offset) const { return reinterpret_cast<uint32_t*>(at(offset)); }

  int64_t first_change(int64_t begin, int64_t end) const {
    int64_t i = begin;
    while (i < end) {  // whole words where possible: this runs at every barrier
      if (i % 4 == 0 && *word(i) == kPattern) {
        i += 4;
      } else if (*at(i) == uint8_t(kPattern >> (8 * (i % 4)))) {
        ++i;
      } else {
        return i;
      }
    }
    return -1;
  }

  void poison([[maybe_unused]] bool on, [[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t end) const {
#ifdef FEWSEG_ASAN
    if (!buffer_) return;
    if (on)
      __asan_poison_memory_region(at(begin), std::size_t(end - begin));
    else
      __asan_unpoison_memory_region(at(begin), std::size_t(end - begin));
#endif
  }

  std::unique_ptr<Unit[]> buffer_;
  int64_t capacity_ = 0, plan_bytes_ = 0, begins_ = kZone;
  std::vector<Array> arrays_;
};

}  // namespace fewseg::emulator
