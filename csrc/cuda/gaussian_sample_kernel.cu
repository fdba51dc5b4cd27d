// GPU side of fewseg::gaussian_sample. What the numbers mean is in csrc/ops/gaussian_sample.cpp.
#include <tuple>

#include "../common/gaussian_arguments.h"
#include "gaussian_launch.h"
#include "gaussian_sample.cuh"
#include "host.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::gaussian_sample";

Tensor gaussian_sample(const Tensor& mean, const Tensor& variance, int64_t num_samples, const Tensor& key) {
  check_gaussians(kOp, mean, variance, /*shots=*/false);
  check_noise(kOp, mean, num_samples, key);
  const OnDevice device(mean);
  const int64_t tasks = mean.size(0), channels = mean.size(1);
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const Tensor plain_key = as_contiguous(key);
  Tensor z = make(mean, {tasks, num_samples, channels}, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    const DeviceGaussians<A> from{data<A>(means), data<A>(variances), tasks, channels};
    run(device, gaussian_sample_kernel<DeviceGaussians<A>, A>, plan_noise(tasks, num_samples, channels), from,
        num_samples, data<int64_t>(plain_key), mutable_data<A>(z));
  });
  return with_dtype(z, result_type(mean, variance));
}

std::tuple<Tensor, Tensor> gaussian_sample_backward(const Tensor& gradient, const Tensor& variance, const Tensor& key) {
  check_sample_backward(kOp, gradient, variance, key, /*shots=*/false);
  const OnDevice device(variance);
  const ScalarType type = accumulator_type(variance.scalar_type());
  const int64_t tasks = gradient.size(0), samples = gradient.size(1), channels = gradient.size(2);
  const Tensor plain_gradient = plain(gradient, type), variances = plain(variance, type);
  const Tensor plain_key = as_contiguous(key);
  Tensor d_mean = make(gradient, {tasks, channels}, type), d_variance = make(gradient, {tasks, channels}, type);
  dispatch_gaussian(kOp, variance, [&](auto accumulator) {
    using A = decltype(accumulator);
    const DeviceGaussians<A> from{nullptr, data<A>(variances), tasks, channels};
    const GaussianGradient<A> to{data<A>(variances), mutable_data<A>(d_mean), mutable_data<A>(d_variance), channels};
    run(device, gaussian_sample_backward_kernel<DeviceGaussians<A>, GaussianGradient<A>, A>,
        plan_noise(tasks, 1, channels), from, samples, data<int64_t>(plain_key), data<A>(plain_gradient), to);
  });
  return {d_mean, d_variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("gaussian_sample", TORCH_BOX(&gaussian_sample));
  m.impl("_gaussian_sample_backward", TORCH_BOX(&gaussian_sample_backward));
}

}  // namespace fewseg
