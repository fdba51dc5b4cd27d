// What the raw backward operators check of what they are given, the same on every device. Autograd hands them what the
// forward has made; who calls them through the dispatcher may hand them anything, and must not read out of bounds.
#pragma once

#include "arguments.h"

namespace fewseg {

inline void check_sizes(const char* op, const char* name, const Tensor& x, const Tensor& like,
                        const std::vector<int64_t>& sizes) {
  bool same = x.dim() == int64_t(sizes.size());
  for (size_t i = 0; same && i < sizes.size(); ++i) same = x.size(int64_t(i)) == sizes[i];
  check(same && on_same_device(x, like), op, name, " does not have the sizes or the device of what the forward gives");
}

// What the forward has kept is read as it lies.
inline void check_kept(const char* op, const char* name, const Tensor& x, const Tensor& like,
                       const std::vector<int64_t>& sizes) {
  check_sizes(op, name, x, like, sizes);
  check(x.is_contiguous() && x.scalar_type() == accumulator_type(like.scalar_type()), op, name,
        " is not laid out as what the forward has kept");
}

inline void check_masked_avg_pool_backward(const char* op, const Tensor& gradient, const Tensor& features,
                                           const Tensor& weights, const Tensor& inverse_mass, int64_t mask_h,
                                           int64_t mask_w) {
  check_features(op, features);
  check(inverse_mass.dim() == 2 && mask_h >= 1 && mask_w >= 1, op, "inverse_mass must be [B,K], and masks not empty");
  const int64_t B = features.size(0), K = inverse_mass.size(1);
  check_kept(op, "inverse_mass", inverse_mass, features, {B, K});
  check_kept(op, "weights", weights, features, {B, K, features.size(2) * features.size(3)});
  check_sizes(op, "gradient", gradient, features, {B, K, features.size(1)});
}

// Of both cosine operators, but for the gradient.
inline void check_cosine_backward(const char* op, const Tensor& features, const Tensor& prototypes,
                                  const Tensor& cosine, const Tensor& inverse_norm) {
  check_features(op, features);
  check_prototypes(op, features, prototypes);
  const int64_t B = features.size(0), N = features.size(2) * features.size(3);
  check_kept(op, "cosine", cosine, features, {B, prototypes.size(1), N});
  check_kept(op, "inverse_norm", inverse_norm, features, {B, N});
}

inline void check_inner_opt_backward(const char* op, const Tensor& gradient, const Tensor& features,
                                     const Tensor& target, const Tensor& trajectory, const Tensor& h,
                                     const Tensor& cosine) {
  check_features(op, features);
  check(trajectory.dim() == 4 && trajectory.size(2) >= 1, op, "trajectory must be [B,T,K,C]");
  const int64_t B = features.size(0), C = features.size(1), H = features.size(2), W = features.size(3);
  const int64_t T = trajectory.size(1), K = trajectory.size(2);
  check_kept(op, "trajectory", trajectory, features, {B, T, K, C});
  check_kept(op, "h", h, features, {B, T, K, C});
  check_kept(op, "cosine", cosine, features, {B, T, K - 1, H * W});
  check_sizes(op, "target", target, features, {B, H, W});
  check_sizes(op, "gradient", gradient, features, {B, K, C});
}

}  // namespace fewseg
