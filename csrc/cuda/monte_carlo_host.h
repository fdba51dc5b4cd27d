// What mc_average and mc_uncertainty share on the GPU's host side.
#pragma once

#include "../common/monte_carlo_arguments.h"
#include "host.h"
#include "monte_carlo.cuh"

namespace fewseg {

template <class A>
SampleLogits<A> look(const MonteCarloSizes& sizes, const Tensor& logits) {
  return {data<A>(logits), int(sizes.samples), int(sizes.classes), sizes.tasks, sizes.H, sizes.W, sizes.h, sizes.w};
}

// All but the first result are null for mc_average.
template <class A>
void average_samples(const OnDevice& device, const MonteCarloSizes& sizes, const Tensor& logits, A* probabilities,
                     A* variance, A* entropy, A* mutual_information) {
  const LaunchPlan plan = plan_elements(sizes.tasks * sizes.h * sizes.w);
  const auto kernel =
      sizes.classes <= kFewClasses ? average_samples_kernel<kFewClasses, A> : average_samples_kernel<kManyClasses, A>;
  run(device, kernel, plan, look<A>(sizes, logits), probabilities, variance, entropy, mutual_information);
}

// The host side of both backward operators.
inline Tensor monte_carlo_backward(const char* op, const Tensor& gradient, const Tensor& logits) {
  check(gradient.dim() == 4, op, "gradient must be [B,K,h,w]");
  const MonteCarloSizes sizes(op, logits, std::vector<int64_t>{gradient.size(2), gradient.size(3)});
  check_sizes(op, "gradient", gradient, logits, {sizes.tasks, sizes.classes, sizes.h, sizes.w});
  const OnDevice device(logits);
  const ScalarType type = accumulator_type(logits.scalar_type());
  const Tensor plain_logits = plain(logits, type);
  const Tensor plain_gradient = plain(gradient, type);
  const int64_t planes = sizes.tasks * sizes.samples * sizes.classes;
  Tensor d_logits = make(logits, {sizes.tasks, sizes.samples, sizes.classes, sizes.H, sizes.W}, type);
  const Tensor pulled = make(logits, {planes, sizes.H, sizes.w}, type);
  dispatch_floating(type, op, "logits", [&](auto storage) {
    using A = Accumulator<decltype(storage)>;
    run(device, average_gradient_kernel<A>, plan_elements(sizes.tasks * sizes.samples * sizes.H * sizes.w),
        look<A>(sizes, plain_logits), data<A>(plain_gradient), mutable_data<A>(pulled));
    // Along y the gradient is down already; along x the adjoint of the upsampling is left.
    run(device, resize_kernel<A, A>, plan_elements(planes * sizes.H * sizes.W), data<A>(pulled), planes, sizes.H,
        sizes.w, sizes.H, sizes.W, true, mutable_data<A>(d_logits));
  });
  return with_dtype(d_logits, logits.scalar_type());
}

}  // namespace fewseg
