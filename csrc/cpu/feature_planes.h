#pragma once

#include <cstdint>

namespace fewseg {

// Where a task's features lie: element (c, x) is at data[c * channel_stride + x * pixel_stride], one stride being 1.
template <class S>
struct FeaturePlanes {
  const S* data;
  int64_t channels, pixels, channel_stride, pixel_stride;
};

}  // namespace fewseg
