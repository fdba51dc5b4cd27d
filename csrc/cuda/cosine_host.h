// What cosine_logits and cosine_cross_entropy share on the GPU's host side: the cosines of a batch, and their backward.
#pragma once

#include "cosine.cuh"
#include "host.h"

namespace fewseg {

// p_k and 1/|P_k| of contiguous prototypes [B,K,C].
template <class A>
struct UnitPrototypes {
  Tensor unit, inverse_norm;

  UnitPrototypes(const OnDevice& device, const Tensor& prototypes) {
    const int64_t count = prototypes.size(0) * prototypes.size(1), channels = prototypes.size(2);
    unit = make(prototypes, {count, channels}, ScalarTypeOf<A>::value);
    inverse_norm = make(prototypes, {count}, ScalarTypeOf<A>::value);
    run(device, unit_prototypes_kernel<A>, plan_rows<A>(count), data<A>(prototypes), channels, mutable_data<A>(unit),
        mutable_data<A>(inverse_norm));
  }
};

// cosine [B,K,N] and inverse_norm [B,N] of all tasks; the plain dots with `vectors` where inverse_norm is null.
template <class S>
void run_cosines(const OnDevice& device, const FeatureMap& map, const Accumulator<S>* vectors, int64_t classes,
                 Accumulator<S>* inverse_norm, Accumulator<S>* cosine) {
  using A = Accumulator<S>;
  choose_kernel(map.channels_last, classes, [&](auto layout, auto held) {
    run(device, cosines_kernel<layout.kValue, held.kValue, S, A>, plan_cosines<A>(map.batch, map.pixels, held.kValue),
        features_of<S>(map), vectors, classes, inverse_norm, cosine);
  });
}

// sums[k][c] = sum_x weight[k][x] q(c, x). With `out`, for at most kManyClasses classes, also what run_combine gives
// for the same coefficients, from the same read of the features.
template <class S>
void run_pool(const OnDevice& device, const FeatureMap& map, const Accumulator<S>* weight, int64_t classes,
              Accumulator<S>* sums, const Accumulator<S>* basis = nullptr, const Accumulator<S>* own = nullptr,
              S* out = nullptr) {
  using A = Accumulator<S>;
  choose_kernel(map.channels_last, classes, [&](auto layout, auto held) {
    run(device, pool_kernel<layout.kValue, held.kValue, S, A>,
        plan_pool<A>(map.batch, map.channels, map.channels_last, held.kValue), features_of<S>(map), weight, classes,
        sums, basis, own, out);
  });
}

// out(c, x) = sum_j coefficient[j][x] basis[j][c] + own[x] q(c, x).
template <class S>
void run_combine(const OnDevice& device, const FeatureMap& map, const Accumulator<S>* coefficient,
                 const Accumulator<S>* basis, int64_t terms, const Accumulator<S>* own, S* out) {
  using A = Accumulator<S>;
  const LaunchPlan plan = plan_combine<A>(map.batch, map.pixels, map.channels);
  if (map.channels_last)
    run(device, combine_kernel<true, S, A>, plan, features_of<S>(map), coefficient, basis, terms, own, out);
  else
    run(device, combine_kernel<false, S, A>, plan, features_of<S>(map), coefficient, basis, terms, own, out);
}

// From factor * dLoss/dc [B,K,N]: d_features and d_prototypes, each null where not needed.
template <class S>
void run_cosines_backward(const OnDevice& device, const FeatureMap& map,
                          const UnitPrototypes<Accumulator<S>>& prototypes, int64_t classes,
                          const Accumulator<S>* inverse_norm, const Accumulator<S>* cosine,
                          const Accumulator<S>* gradient, double factor, S* d_features, Accumulator<S>* d_prototypes) {
  using A = Accumulator<S>;
  const ScalarType type = ScalarTypeOf<A>::value;
  const Tensor d_cosine = make(map.tensor, {map.batch, classes, map.pixels}, type);
  const Tensor own = make(map.tensor, {map.batch, map.pixels}, type);
  run(device, cosine_gradient_kernel<A>, plan_elements(map.batch * map.pixels), gradient, factor, cosine, inverse_norm,
      map.batch, classes, map.pixels, mutable_data<A>(d_cosine), mutable_data<A>(own));
  const bool together = d_prototypes && d_features && classes <= kManyClasses;
  if (d_prototypes) {
    run_pool<S>(device, map, data<A>(d_cosine), classes, d_prototypes, data<A>(prototypes.unit), data<A>(own),
                together ? d_features : nullptr);
    run(device, project_out_kernel<A>, plan_rows<A>(map.batch * classes), data<A>(prototypes.unit),
        data<A>(prototypes.inverse_norm), map.channels, d_prototypes);
  }
  if (d_features && !together)
    run_combine<S>(device, map, data<A>(d_cosine), data<A>(prototypes.unit), classes, data<A>(own), d_features);
}

}  // namespace fewseg
