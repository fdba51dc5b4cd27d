// One axis of a convolution: which taps of the kernel lie inside the input, output by output. Outputs with the same
// taps inside form a class, and a class is a run of neighbours: the taps inside only ever move down.
#pragma once

#include <cstdint>

#include "anywhere.h"

namespace fewseg {

struct TapAxis {
  int64_t input, taps, padding, dilation;

  // Of stride 1.
  FEWSEG_ANYWHERE int64_t outputs() const { return input + 2 * padding - dilation * (taps - 1); }

  // The taps first_tap(o) .. last_tap(o) - 1 of output o lie inside; none where both are equal.
  FEWSEG_ANYWHERE int64_t first_tap(int64_t o) const { return tap_at(padding - o); }
  FEWSEG_ANYWHERE int64_t last_tap(int64_t o) const { return tap_at(input + padding - o); }

  // Classes are counted from 0 at output 0. Where first and last tap change at once (an input narrower than the kernel)
  // a number is left out: that class has no outputs.
  FEWSEG_ANYWHERE int64_t class_of(int64_t o) const { return first_tap(0) + last_tap(0) - first_tap(o) - last_tap(o); }
  FEWSEG_ANYWHERE int64_t classes() const { return class_of(outputs() - 1) + 1; }

  // The outputs of class c are class_begin(c) .. class_begin(c + 1) - 1.
  FEWSEG_ANYWHERE int64_t class_begin(int64_t c) const {
    int64_t low = 0, high = outputs();
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (class_of(middle) < c)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

 private:
  // The first tap at or beyond a distance from the output's first tap.
  FEWSEG_ANYWHERE int64_t tap_at(int64_t distance) const {
    const int64_t tap = distance <= 0 ? 0 : (distance + dilation - 1) / dilation;
    return tap < taps ? tap : taps;
  }
};

}  // namespace fewseg
