// CPU kernels of fewseg::cosine_logits. What the numbers mean is in csrc/ops/cosine_logits.cpp.
#include <tuple>

#include "cosine.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::cosine_logits";

std::tuple<Tensor, Tensor, Tensor> cosine_logits_forward(const Tensor& features, const Tensor& prototypes,
                                                         double scale) {
  check_features(kOp, features);
  check_prototypes(kOp, features, prototypes);
  check_finite(kOp, "scale", scale);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_prototypes = plain(prototypes, accumulator);
  const int64_t K = prototypes.size(1);
  Tensor logits = make(features, {map.batch, K, map.height, map.width}, accumulator);
  Tensor cosine = make(features, {map.batch, K, map.pixels}, accumulator);
  Tensor inverse_norm = make(features, {map.batch, map.pixels}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const UnitPrototypes<A> unit(data<A>(plain_prototypes), map.batch * K, map.channels);
    cosines<S>(map, unit.unit.data(), K, mutable_data<A>(inverse_norm), mutable_data<A>(cosine));
    const A* from = data<A>(cosine);
    A* to = mutable_data<A>(logits);
    for (int64_t i = 0; i < map.batch * K * map.pixels; ++i) to[i] = A(scale) * from[i];
  });
  return {with_dtype(logits, result_type(features, prototypes)), cosine, inverse_norm};
}

Tensor cosine_logits(const Tensor& features, const Tensor& prototypes, double scale) {
  return std::get<0>(cosine_logits_forward(features, prototypes, scale));
}

std::tuple<Tensor, Tensor> cosine_logits_backward(const Tensor& gradient, const Tensor& features,
                                                  const Tensor& prototypes, const Tensor& cosine,
                                                  const Tensor& inverse_norm, double scale, bool needs_features,
                                                  bool needs_prototypes) {
  check_cosine_backward(kOp, features, prototypes, cosine, inverse_norm);
  check_sizes(kOp, "gradient", gradient, features,
              {features.size(0), prototypes.size(1), features.size(2), features.size(3)});
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_gradient = plain(gradient, accumulator);
  const Tensor plain_prototypes = plain(prototypes, accumulator);
  const int64_t K = prototypes.size(1);
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  Tensor d_prototypes = make(features, {needs_prototypes ? map.batch : 0, K, map.channels}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const UnitPrototypes<A> unit(data<A>(plain_prototypes), map.batch * K, map.channels);
    std::vector<A> d_cosine(map.batch * K * map.pixels);
    for (size_t i = 0; i < d_cosine.size(); ++i) d_cosine[i] = A(scale) * data<A>(plain_gradient)[i];
    cosines_backward<S>(map, unit, K, data<A>(inverse_norm), data<A>(cosine), d_cosine.data(),
                        needs_features ? mutable_data<S>(d_features) : nullptr,
                        needs_prototypes ? mutable_data<A>(d_prototypes) : nullptr);
  });
  return {d_features, d_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("cosine_logits", TORCH_BOX(&cosine_logits));
  m.impl("_cosine_logits_forward", TORCH_BOX(&cosine_logits_forward));
  m.impl("_cosine_logits_backward", TORCH_BOX(&cosine_logits_backward));
}

}  // namespace fewseg
