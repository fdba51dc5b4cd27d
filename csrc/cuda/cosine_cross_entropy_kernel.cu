// GPU side of fewseg::cosine_cross_entropy. What the numbers mean is in csrc/ops/cosine_cross_entropy.cpp.
#include <tuple>

#include "cosine_cross_entropy.cuh"
#include "cosine_host.h"
#include "labels_host.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::cosine_cross_entropy";

template <class A>
UpsampledCosines<A> look(const FeatureMap& map, const Tensor& cosine, int64_t K, const Tensor& target,
                         const DeviceLabels& labels, double scale) {
  return {data<A>(cosine), int(K), map.height, map.width, target.size(1), target.size(2), data<int32_t>(labels.classes),
          A(scale)};
}

std::tuple<Tensor, Tensor, Tensor> cosine_cross_entropy_forward(const Tensor& features, const Tensor& prototypes,
                                                                const Tensor& target, double scale,
                                                                int64_t ignore_index, const std::string& reduction) {
  check_features(kOp, features);
  check_prototypes(kOp, features, prototypes);
  check_target(kOp, features, target);
  check_finite(kOp, "scale", scale);
  const Divisor divisor = loss_divisor(kOp, reduction);
  const OnDevice device(features);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_prototypes = plain(prototypes, accumulator);
  const int64_t K = prototypes.size(1), h = target.size(1);
  const bool per_task = divisor == Divisor::task;
  Tensor loss = make(features, per_task ? std::vector<int64_t>{map.batch} : std::vector<int64_t>{}, accumulator);
  Tensor cosine = make(features, {map.batch, K, map.pixels}, accumulator);
  Tensor inverse_norm = make(features, {map.batch, map.pixels}, accumulator);
  const DeviceLabels labels(device, kOp, as_contiguous(target), K, ignore_index);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const UnitPrototypes<A> unit(device, plain_prototypes);
    run_cosines<S>(device, map, data<A>(unit.unit), K, mutable_data<A>(inverse_norm), mutable_data<A>(cosine));
    const Tensor weight = labels.weights<A>(device, 1.0, divisor);
    const Tensor row_loss = make(features, {map.batch, h}, ScalarType::Double);
    run(device, loss_rows_kernel<A>, plan_rows<double>(map.batch * h), look<A>(map, cosine, K, target, labels, scale),
        data<A>(weight), mutable_data<double>(row_loss));
    run(device, sum_rows_kernel<A>, plan_rows<double>(1), data<double>(row_loss), map.batch, h, !per_task,
        mutable_data<A>(loss));
  });
  return {with_dtype(loss, result_type(features, prototypes)), cosine, inverse_norm};
}

Tensor cosine_cross_entropy(const Tensor& features, const Tensor& prototypes, const Tensor& target, double scale,
                            int64_t ignore_index, const std::string& reduction) {
  return std::get<0>(cosine_cross_entropy_forward(features, prototypes, target, scale, ignore_index, reduction));
}

std::tuple<Tensor, Tensor> cosine_cross_entropy_backward(const Tensor& gradient, const Tensor& features,
                                                         const Tensor& prototypes, const Tensor& target,
                                                         const Tensor& cosine, const Tensor& inverse_norm, double scale,
                                                         int64_t ignore_index, const std::string& reduction,
                                                         bool needs_features, bool needs_prototypes) {
  check_cosine_backward(kOp, features, prototypes, cosine, inverse_norm);
  check_target(kOp, features, target);
  const Divisor divisor = loss_divisor(kOp, reduction);
  check_sizes(kOp, "gradient", gradient, features,
              divisor == Divisor::task ? std::vector<int64_t>{features.size(0)} : std::vector<int64_t>{});
  const OnDevice device(features);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_gradient = plain(gradient, accumulator);
  const Tensor plain_prototypes = plain(prototypes, accumulator);
  const int64_t K = prototypes.size(1), w = target.size(2), planes = map.batch * K;
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  Tensor d_prototypes = make(features, {needs_prototypes ? map.batch : 0, K, map.channels}, accumulator);
  const DeviceLabels labels(device, kOp, as_contiguous(target), K, ignore_index);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const UnitPrototypes<A> unit(device, plain_prototypes);
    const Tensor weight = labels.weights<A>(device, 1.0, divisor);
    const Tensor pulled = make(features, {map.batch, K, map.height, w}, accumulator);
    run(device, residual_kernel<A>, plan_elements(map.batch * map.height * w),
        look<A>(map, cosine, K, target, labels, scale), map.batch, data<A>(weight), data<A>(plain_gradient),
        divisor == Divisor::task, mutable_data<A>(pulled));
    // Along y the residuals are down already; along x the adjoint of the upsampling is left.
    const Tensor d_cosine = make(features, {map.batch, K, map.pixels}, accumulator);
    run(device, resize_kernel<A, A>, plan_elements(planes * map.pixels), data<A>(pulled), planes, map.height, w,
        map.height, map.width, true, mutable_data<A>(d_cosine));
    run_cosines_backward<S>(device, map, unit, K, data<A>(inverse_norm), data<A>(cosine), data<A>(d_cosine), 1.0,
                            needs_features ? mutable_data<S>(d_features) : nullptr,
                            needs_prototypes ? mutable_data<A>(d_prototypes) : nullptr);
  });
  return {d_features, d_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("cosine_cross_entropy", TORCH_BOX(&cosine_cross_entropy));
  m.impl("_cosine_cross_entropy_forward", TORCH_BOX(&cosine_cross_entropy_forward));
  m.impl("_cosine_cross_entropy_backward", TORCH_BOX(&cosine_cross_entropy_backward));
}

}  // namespace fewseg
