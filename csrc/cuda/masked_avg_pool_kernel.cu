// GPU side of fewseg::masked_avg_pool. What the numbers mean is in csrc/ops/masked_avg_pool.cpp.
#include <tuple>

#include "cosine_host.h"
#include "masked_avg_pool.cuh"
#include "resize.cuh"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::masked_avg_pool";

// [planes][from_h][from_w] -> [planes][to_h][to_w]
template <class In, class A>
void resize(const OnDevice& device, const In* input, int64_t planes, int64_t from_h, int64_t from_w, int64_t to_h,
            int64_t to_w, bool adjoint, A* output) {
  run(device, resize_kernel<In, A>, plan_elements(planes * to_h * to_w), input, planes, from_h, from_w, to_h, to_w,
      adjoint, output);
}

std::tuple<Tensor, Tensor, Tensor> masked_avg_pool_forward(const Tensor& features, const Tensor& masks, double eps,
                                                           const std::string& resize_what) {
  check_features(kOp, features);
  check_masks(kOp, features, masks);
  check_finite(kOp, "eps", eps);
  const bool adjoint = pools_by_adjoint(kOp, resize_what);
  const OnDevice device(features);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const bool is_bool = masks.scalar_type() == ScalarType::Bool;
  const Tensor plain_masks = as_contiguous(is_bool ? masks : with_dtype(masks, accumulator));
  const int64_t K = masks.size(1), planes = map.batch * K, h = masks.size(2), w = masks.size(3);

  Tensor prototypes = make(features, {map.batch, K, map.channels}, accumulator);
  Tensor weights = make(features, {map.batch, K, map.pixels}, accumulator);
  Tensor inverse_mass = make(features, {map.batch, K}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    A* out = mutable_data<A>(weights);
    if (is_bool)
      resize(device, data<bool>(plain_masks), planes, h, w, map.height, map.width, adjoint, out);
    else
      resize(device, data<A>(plain_masks), planes, h, w, map.height, map.width, adjoint, out);
    run(device, normalise_weights_kernel<A>, plan_rows<A>(planes), out, map.pixels, eps, mutable_data<A>(inverse_mass));
    run_pool<S>(device, map, out, K, mutable_data<A>(prototypes));
  });
  return {with_dtype(prototypes, result_type(features, masks)), weights, inverse_mass};
}

Tensor masked_avg_pool(const Tensor& features, const Tensor& masks, double eps, const std::string& resize_what) {
  return std::get<0>(masked_avg_pool_forward(features, masks, eps, resize_what));
}

std::tuple<Tensor, Tensor> masked_avg_pool_backward(const Tensor& gradient, const Tensor& features,
                                                    const Tensor& weights, const Tensor& inverse_mass, int64_t mask_h,
                                                    int64_t mask_w, const std::string& resize_what, bool needs_features,
                                                    bool needs_masks) {
  check_masked_avg_pool_backward(kOp, gradient, features, weights, inverse_mass, mask_h, mask_w);
  const OnDevice device(features);
  const FeatureMap map(features);
  const int64_t K = weights.size(1), planes = map.batch * K;
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const Tensor plain_gradient = plain(gradient, accumulator);
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  Tensor d_masks = make(features, {needs_masks ? map.batch : 0, K, mask_h, mask_w}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    if (needs_features)
      run_combine<S>(device, map, data<A>(weights), data<A>(plain_gradient), K, nullptr, mutable_data<S>(d_features));
    if (!needs_masks) return;
    const Tensor d_weights = make(features, {map.batch, K, map.pixels}, accumulator);
    run_cosines<S>(device, map, data<A>(plain_gradient), K, nullptr, mutable_data<A>(d_weights));
    run(device, weights_backward_kernel<A>, plan_rows<A>(planes), data<A>(weights), data<A>(inverse_mass), map.pixels,
        mutable_data<A>(d_weights));
    resize(device, data<A>(d_weights), planes, map.height, map.width, mask_h, mask_w,
           !pools_by_adjoint(kOp, resize_what), mutable_data<A>(d_masks));
  });
  return {d_features, d_masks};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("masked_avg_pool", TORCH_BOX(&masked_avg_pool));
  m.impl("_masked_avg_pool_forward", TORCH_BOX(&masked_avg_pool_forward));
  m.impl("_masked_avg_pool_backward", TORCH_BOX(&masked_avg_pool_backward));
}

}  // namespace fewseg
