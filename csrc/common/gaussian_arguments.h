// What the Gaussian operators check of their arguments, the same on every device.
#pragma once

#include "backward_arguments.h"
#include "gaussian.h"

namespace fewseg {

// Gaussians [B,C], or with `shots` [B,S,C].
inline void check_gaussians(const char* op, const Tensor& mean, const Tensor& variance, bool shots) {
  check(mean.dim() == (shots ? 3 : 2), op, "mean must be ", shots ? "[B,S,C]" : "[B,C]", ", got ", mean.dim(),
        " dimensions");
  check(variance.dim() == mean.dim(), op, "variance must have the sizes of mean, got ", variance.dim(), " dimensions");
  for (int64_t i = 0; i < mean.dim(); ++i)
    check(variance.size(i) == mean.size(i), op, "variance must have the sizes of mean");
  check(on_same_device(mean, variance), op, "variance must be on the device of mean");
  check_dtype_beside(op, "variance", mean, variance);
  check(!shots || mean.size(1) >= 1, op, "mean must hold at least one shot");
}

inline void check_noise(const char* op, const Tensor& mean, int64_t num_samples, const Tensor& key) {
  check(num_samples >= 1, op, "num_samples must be at least 1, got ", num_samples);
  check(key.dim() == 1 && key.size(0) == 2 && key.scalar_type() == ScalarType::Long, op, "key must be int64 [2]");
  check(on_same_device(mean, key), op, "key must be on the device of mean");
}

// The gradient of samples [B,L,C], for the backward of what was drawn of `like` [B,C], or with `shots` [B,S,C].
inline void check_sample_backward(const char* op, const Tensor& gradient, const Tensor& like, const Tensor& key,
                                  bool shots) {
  check(like.dim() == (shots ? 3 : 2) && gradient.dim() == 3, op, "gradient must be [B,L,C]");
  check_sizes(op, "gradient", gradient, like, {like.size(0), gradient.size(1), like.size(shots ? 2 : 1)});
  check_noise(op, like, gradient.size(1), key);
}

inline bool is_precise(const char* op, const char* argument, const std::string& weighting) {
  check(weighting == "precision" || weighting == "uniform", op, argument,
        " must be \"precision\" or \"uniform\", got \"", weighting, "\"");
  return weighting == "precision";
}

inline Weighting weighting_of(const char* op, const std::string& mean, const std::string& variance) {
  return {is_precise(op, "mean_weighting", mean), is_precise(op, "variance_weighting", variance)};
}

// Calls f with a value of the accumulator type.
template <class F>
void dispatch_gaussian(const char* op, const Tensor& mean, const F& f) {
  dispatch_floating(mean.scalar_type(), op, "mean", [&](auto storage) { f(Accumulator<decltype(storage)>{}); });
}

}  // namespace fewseg
