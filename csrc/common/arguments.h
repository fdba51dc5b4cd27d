// What the operators check of their arguments, the same on every device.
#pragma once

#include <cmath>

#include "divisor.h"
#include "tensors.h"

namespace fewseg {

inline bool on_same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// The dtype of a floating argument beside the features (or `other`): theirs, or float32 beside 16-bit ones.
inline void check_dtype_beside(const char* op, const char* name, const Tensor& other, const Tensor& x) {
  const ScalarType type = other.scalar_type();
  check(x.scalar_type() == type || x.scalar_type() == accumulator_type(type), op, name,
        " must have the dtype of the features, or float32 beside 16-bit ones");
}

inline void check_features(const char* op, const Tensor& features) {
  check(features.dim() == 4, op, "features must be [B,C,H,W], got ", features.dim(), " dimensions");
  check(features.size(2) > 0 && features.size(3) > 0, op, "features must have at least one pixel");
}

inline void check_prototypes(const char* op, const Tensor& features, const Tensor& prototypes) {
  check(prototypes.dim() == 3, op, "prototypes must be [B,K,C], got ", prototypes.dim(), " dimensions");
  check(on_same_device(features, prototypes), op, "prototypes must be on the device of features");
  check_dtype_beside(op, "prototypes", features, prototypes);
  check(prototypes.size(0) == features.size(0), op, "features has ", features.size(0), " tasks and prototypes ",
        prototypes.size(0));
  check(prototypes.size(1) >= 1, op, "prototypes must hold at least one class");
  check(prototypes.size(2) == features.size(1), op, "features has ", features.size(1), " channels and prototypes ",
        prototypes.size(2));
}

inline void check_masks(const char* op, const Tensor& features, const Tensor& masks) {
  check(masks.dim() == 4, op, "masks must be [B,K,h,w], got ", masks.dim(), " dimensions");
  check(on_same_device(features, masks), op, "masks must be on the device of features");
  if (masks.scalar_type() != ScalarType::Bool) check_dtype_beside(op, "masks", features, masks);
  check(masks.size(0) == features.size(0), op, "features has ", features.size(0), " tasks and masks has ",
        masks.size(0));
  check(masks.size(2) > 0 && masks.size(3) > 0, op, "masks must have at least one pixel");
}

inline void check_finite(const char* op, const char* name, double value) {
  check(std::isfinite(value), op, name, " must be finite, got ", value);
}

inline void check_target(const char* op, const Tensor& features, const Tensor& target) {
  check(target.dim() == 3, op, "target must be [B,h,w], got ", target.dim(), " dimensions");
  check(on_same_device(features, target), op, "target must be on the device of features");
  check(target.size(0) == features.size(0), op, "features has ", features.size(0), " tasks and target ",
        target.size(0));
  check(target.size(1) > 0 && target.size(2) > 0, op, "target must have at least one pixel");
}

// The numbers of a call of inner_opt.
struct InnerOptSettings {
  int64_t steps, classes, ignore_index;
  double lr, scale;
  bool mean;
};

inline InnerOptSettings check_inner_opt(const char* op, const Tensor& features, const Tensor& prototypes,
                                        const Tensor& target, int64_t steps, double lr, double scale,
                                        int64_t ignore_index, const std::string& reduction) {
  check_features(op, features);
  check_prototypes(op, features, prototypes);
  check_target(op, features, target);
  check(target.size(1) == features.size(2) && target.size(2) == features.size(3), op, "target must be ",
        features.size(2), " x ", features.size(3), " like features, got ", target.size(1), " x ", target.size(2));
  check(steps >= 0, op, "steps must not be negative, got ", steps);
  check(std::isfinite(lr) && std::isfinite(scale), op, "lr and scale must be finite, got ", lr, " and ", scale);
  check(reduction == "mean" || reduction == "sum", op, "reduction must be \"mean\" or \"sum\", got \"", reduction,
        "\"");
  return {steps, prototypes.size(1), ignore_index, lr, scale, reduction == "mean"};
}

// Whether masked_avg_pool takes the masks to the features' grid by the adjoint of upsampling the features ("features")
// or by resizing them ("masks").
inline bool pools_by_adjoint(const char* op, const std::string& resize) {
  check(resize == "features" || resize == "masks", op, "resize must be \"features\" or \"masks\", got \"", resize,
        "\"");
  return resize == "features";
}

inline Divisor loss_divisor(const char* op, const std::string& reduction) {
  if (reduction == "mean") return Divisor::batch;
  if (reduction == "sum") return Divisor::one;
  check(reduction == "per_task", op, "reduction must be \"mean\", \"sum\" or \"per_task\", got \"", reduction, "\"");
  return Divisor::task;
}

}  // namespace fewseg
