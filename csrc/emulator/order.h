// In which order blocks, warps and lanes run: FEWSEG_EMULATOR_ORDER.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fewseg::emulator {

class Order {
 public:
  // Every launch begins with the same seed, so that its result does not depend on the launches before it.
  void start() {
    const char* name = std::getenv("FEWSEG_EMULATOR_ORDER");
    const std::string order = name && *name ? name : "forward";
    if (order == "forward") {
      kind_ = Kind::kForward;
    } else if (order == "reverse") {
      kind_ = Kind::kReverse;
    } else if (order == "shuffled") {
      kind_ = Kind::kShuffled;
    } else {
      throw std::runtime_error("emulator: FEWSEG_EMULATOR_ORDER=" + order + " is none of forward, reverse, shuffled");
    }
    const char* seed = std::getenv("FEWSEG_EMULATOR_SEED");
    random_ = seed && *seed ? std::strtoull(seed, nullptr, 10) : 1;
  }

  // For launches that are not cooperative: the blocks in their order, so many at once. Forward and backward they run
  // one after another; shuffled, a block also meets others half done, for instance in what it counts for a last block.
  void start_blocks(int64_t count) {
    count_ = count;
    if (kind_ != Kind::kShuffled) return;
    permutation_.resize(std::size_t(count));
    std::iota(permutation_.begin(), permutation_.end(), int64_t(0));
    for (int64_t i = count - 1; i > 0; --i)
      std::swap(permutation_[std::size_t(i)], permutation_[below(uint64_t(i) + 1)]);
  }
  int64_t block(int64_t i) const {
    if (kind_ == Kind::kForward) return i;
    return kind_ == Kind::kReverse ? count_ - 1 - i : permutation_[std::size_t(i)];
  }

  int64_t blocks_at_once() const { return kind_ == Kind::kShuffled ? 4 : 1; }

  // One of the warps of the set, -1 if it is empty.
  int64_t warp(const std::vector<uint64_t>& set) {
    const std::size_t words = set.size(), start = kind_ == Kind::kShuffled ? below(words) : 0;
    for (std::size_t i = 0; i < words; ++i) {
      const std::size_t word = kind_ == Kind::kReverse ? words - 1 - i : (start + i) % words;
      uint64_t bits = set[word];
      if (!bits) continue;
      if (kind_ == Kind::kShuffled)
        for (std::size_t skipped = below(uint64_t(__builtin_popcountll(bits))); skipped > 0; --skipped)
          bits &= bits - 1;
      return int64_t(word) * 64 + (kind_ == Kind::kReverse ? 63 - __builtin_clzll(bits) : __builtin_ctzll(bits));
    }
    return -1;
  }

  // Another permutation of the lanes for the next turn of a warp.
  void new_turn() {
    if (kind_ != Kind::kShuffled) return;
    for (int i = 0; i < 32; ++i) {  // lane i goes to a random place among those before it
      const std::size_t j = below(uint64_t(i) + 1);
      lanes_[i] = lanes_[j];
      lanes_[j] = uint8_t(i);
    }
    position_ = 0;
  }

  // The next lane of the set, which is not empty and only shrinks during a turn.
  int lane(unsigned set) {
    if (kind_ == Kind::kForward) return __builtin_ctz(set);
    if (kind_ == Kind::kReverse) return 31 - __builtin_clz(set);
    while (!(set >> lanes_[position_] & 1)) ++position_;
    return lanes_[position_];
  }

 private:
  enum class Kind { kForward, kReverse, kShuffled };

  // splitmix64
  std::size_t below(uint64_t limit) {
    uint64_t z = random_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return std::size_t((((z ^ (z >> 31)) >> 32) * limit) >> 32);
  }

  Kind kind_ = Kind::kForward;
  uint64_t random_ = 1;
  int64_t count_ = 0;
  std::vector<int64_t> permutation_;
  uint8_t lanes_[32] = {};
  int position_ = 0;
};

}  // namespace fewseg::emulator
