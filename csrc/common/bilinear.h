// Bilinear resizing (align_corners=False, no antialiasing: F.interpolate's) as two banded matrices, one per axis. The
// adjoint, which pools a mask or a residual down to the features' grid, is their transpose: a gather in fixed order
// instead of a scatter, so both directions run through one kernel and repeat bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "bands.h"

namespace fewseg {

template <class A>
class BilinearAxis {
 public:
  // Resizes `from` samples to `to`; transposed, it takes `to` numbers back to `from`.
  BilinearAxis(int64_t from, int64_t to, bool transposed)
      : outputs_(transposed ? from : to), inputs_(transposed ? to : from) {
    std::vector<int64_t> lower(to);
    std::vector<double> fraction(to);
    for (int64_t o = 0; o < to; ++o) {
      const double source = (double(o) + 0.5) * double(from) / double(to) - 0.5;
      lower[o] = source > 0 ? int64_t(source) : 0;
      fraction[o] = source > 0 && lower[o] + 1 < from ? source - double(lower[o]) : 0;
    }
    offset_.push_back(0);
    if (transposed) {
      // `lower` never decreases, so the outputs that touch input i are neighbours: those with lower = i - 1 or i.
      int64_t first = 0;
      for (int64_t i = 0; i < from; ++i) {
        while (first < to && lower[first] < i - 1) ++first;
        begin_.push_back(first);
        for (int64_t o = first; o < to && lower[o] <= i; ++o)
          weight_.push_back(A(lower[o] == i ? 1 - fraction[o] : fraction[o]));
        offset_.push_back(int64_t(weight_.size()));
      }
    } else {
      for (int64_t o = 0; o < to; ++o) {
        begin_.push_back(lower[o]);
        weight_.push_back(A(1 - fraction[o]));
        if (fraction[o] > 0) weight_.push_back(A(fraction[o]));
        offset_.push_back(int64_t(weight_.size()));
      }
    }
  }

  Bands<A> bands() const { return {outputs_, inputs_, begin_.data(), offset_.data(), weight_.data()}; }

 private:
  int64_t outputs_, inputs_;
  std::vector<int64_t> begin_, offset_;
  std::vector<A> weight_;
};

// Both axes of a resize of h x w planes.
template <class A>
struct BilinearResize {
  BilinearAxis<A> rows, columns;
  BilinearResize(int64_t from_h, int64_t from_w, int64_t to_h, int64_t to_w, bool transposed)
      : rows(from_h, to_h, transposed), columns(from_w, to_w, transposed) {}
};

}  // namespace fewseg
