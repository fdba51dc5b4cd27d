// GPU side of fewseg::sample_prototypes. What the numbers mean is in csrc/ops/sample_prototypes.cpp.
#include <tuple>

#include "../common/gaussian_arguments.h"
#include "gaussian_launch.h"
#include "host.h"
#include "sample_prototypes.cuh"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::sample_prototypes";

template <class A>
DeviceAggregate<A> aggregate_of(const Tensor& mean, const Tensor& variance) {
  return DeviceAggregate<A>({data<A>(mean), data<A>(variance), mean.size(0), mean.size(1), mean.size(2)});
}

Tensor sample_prototypes(const Tensor& mean, const Tensor& variance, int64_t num_samples, const Tensor& key) {
  check_gaussians(kOp, mean, variance, /*shots=*/true);
  check_noise(kOp, mean, num_samples, key);
  const OnDevice device(mean);
  const int64_t tasks = mean.size(0), channels = mean.size(2);
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const Tensor plain_key = as_contiguous(key);
  Tensor z = make(mean, {tasks, num_samples, channels}, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    run(device, gaussian_sample_kernel<DeviceAggregate<A>, A>, plan_noise(tasks, num_samples, channels),
        aggregate_of<A>(means, variances), num_samples, data<int64_t>(plain_key), mutable_data<A>(z));
  });
  return with_dtype(z, result_type(mean, variance));
}

std::tuple<Tensor, Tensor> sample_prototypes_backward(const Tensor& gradient, const Tensor& mean,
                                                      const Tensor& variance, const Tensor& key) {
  check_gaussians(kOp, mean, variance, /*shots=*/true);
  check_sample_backward(kOp, gradient, mean, key, /*shots=*/true);
  const OnDevice device(mean);
  const ScalarType type = accumulator_type(mean.scalar_type());
  const int64_t tasks = mean.size(0), samples = gradient.size(1), channels = mean.size(2);
  const Tensor plain_gradient = plain(gradient, type), plain_key = as_contiguous(key);
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const std::vector<int64_t> like{tasks, mean.size(1), channels};
  Tensor d_mean = make(mean, like, type), d_variance = make(mean, like, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    const DeviceAggregate<A> from = aggregate_of<A>(means, variances);
    const ShotsGradient<A> to{from.shots, mutable_data<A>(d_mean), mutable_data<A>(d_variance)};
    run(device, gaussian_sample_backward_kernel<DeviceAggregate<A>, ShotsGradient<A>, A>,
        plan_noise(tasks, 1, channels), from, samples, data<int64_t>(plain_key), data<A>(plain_gradient), to);
  });
  return {d_mean, d_variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("sample_prototypes", TORCH_BOX(&sample_prototypes));
  m.impl("_sample_prototypes_backward", TORCH_BOX(&sample_prototypes_backward));
}

}  // namespace fewseg
