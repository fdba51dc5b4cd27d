// What the Monte-Carlo operators check of their arguments, the same on every device.
#pragma once

#include <optional>

#include "backward_arguments.h"

namespace fewseg {

// Sizes of a call: logits [B,L,K,H,W], results at h x w.
struct MonteCarloSizes {
  int64_t tasks, samples, classes, H, W, h, w;

  MonteCarloSizes(const char* op, const Tensor& logits, const std::optional<std::vector<int64_t>>& size) {
    check(logits.dim() == 5, op, "logits must be [B,L,K,H,W], got ", logits.dim(), " dimensions");
    dispatch_floating(logits.scalar_type(), op, "logits", [](auto) {});  // which fails for other types
    tasks = logits.size(0), samples = logits.size(1), classes = logits.size(2);
    H = logits.size(3), W = logits.size(4);
    check(samples >= 1 && classes >= 1, op, "logits must hold at least one sample and one class");
    check(H >= 1 && W >= 1, op, "logits must have at least one pixel");
    check(!size || size->size() == 2, op, "size must be two numbers");
    h = size ? (*size)[0] : H, w = size ? (*size)[1] : W;
    check(h >= 1 && w >= 1, op, "size must be positive, got ", h, " x ", w);
  }
};

}  // namespace fewseg
