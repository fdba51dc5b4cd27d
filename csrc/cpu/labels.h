// Targets as the kernels read them: int32 classes, -1 where ignored, checked against the number of classes.
#pragma once

#include <atomic>

#include "../common/tensors.h"
#include "parallel.h"

namespace fewseg {

// Converts `count` labels of task `task` (rows of `width`) and returns how many are not ignored.
template <class Label>
inline int64_t convert_labels(const char* op, const Label* labels, int64_t task, int64_t count, int64_t width,
                              int64_t classes, int64_t ignore_index, int32_t* converted) {
  constexpr int64_t kPart = 1 << 14;
  std::atomic<int64_t> valid{0}, wrong{count};
  parallel((count + kPart - 1) / kPart, count, [&](int64_t begin, int64_t end) {
    int64_t kept_here = 0;
    for (int64_t x = begin * kPart; x < std::min(end * kPart, count); ++x) {
      const int64_t label = int64_t(labels[x]);
      const bool kept = label != ignore_index;
      if (kept && (label < 0 || label >= classes)) {
        // The first wrong label in reading order, whichever thread finds one.
        int64_t known = wrong;
        while (x < known && !wrong.compare_exchange_weak(known, x)) {
        }
        break;
      }
      converted[x] = kept ? int32_t(label) : -1;
      kept_here += kept;
    }
    valid += kept_here;
  });
  if (wrong < count)
    fail(op, "target has the label ", int64_t(labels[wrong]), " at [", task, ", ", wrong / width, ", ", wrong % width,
         "]; expected 0..", classes - 1, " or ignore_index = ", ignore_index);
  return valid;
}

// Calls f with a typed pointer to contiguous labels.
template <class F>
inline void dispatch_labels(const char* op, const Tensor& target, const F& f) {
  switch (target.scalar_type()) {
    case ScalarType::Long:
      return f(data<int64_t>(target));
    case ScalarType::Int:
      return f(data<int32_t>(target));
    case ScalarType::Byte:
      return f(data<uint8_t>(target));
    default:
      fail(op, "target must be int64, int32 or uint8");
  }
}

}  // namespace fewseg
