// CPU kernels of fewseg::gaussian_sample. What the numbers mean is in csrc/ops/gaussian_sample.cpp.
#include <tuple>

#include "gaussian_noise.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::gaussian_sample";

Tensor gaussian_sample(const Tensor& mean, const Tensor& variance, int64_t num_samples, const Tensor& key) {
  check_gaussians(kOp, mean, variance, /*shots=*/false);
  check_noise(kOp, mean, num_samples, key);
  const Samples sizes{mean.size(0), num_samples, mean.size(1)};
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const Tensor plain_key = as_contiguous(key);
  Tensor z = make(mean, {sizes.tasks, sizes.samples, sizes.channels}, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    const A *m = data<A>(means), *v = data<A>(variances);
    const auto gaussian_of = [&](int64_t task, int64_t c) {
      const int64_t i = task * sizes.channels + c;
      return Gaussian{double(m[i]), at_least_variance(double(v[i]))};
    };
    draw_samples(sizes, data<int64_t>(plain_key), gaussian_of, mutable_data<A>(z));
  });
  return with_dtype(z, result_type(mean, variance));
}

std::tuple<Tensor, Tensor> gaussian_sample_backward(const Tensor& gradient, const Tensor& variance, const Tensor& key) {
  check_sample_backward(kOp, gradient, variance, key, /*shots=*/false);
  const ScalarType type = accumulator_type(variance.scalar_type());
  const Samples sizes{gradient.size(0), gradient.size(1), gradient.size(2)};
  const Tensor plain_gradient = plain(gradient, type), variances = plain(variance, type);
  const Tensor plain_key = as_contiguous(key);
  Tensor d_mean = make(gradient, {sizes.tasks, sizes.channels}, type);
  Tensor d_variance = make(gradient, {sizes.tasks, sizes.channels}, type);
  dispatch_gaussian(kOp, variance, [&](auto accumulator) {
    using A = decltype(accumulator);
    const A* v = data<A>(variances);
    A *to_mean = mutable_data<A>(d_mean), *to_variance = mutable_data<A>(d_variance);
    const auto gaussian_of = [&](int64_t task, int64_t c) {
      return Gaussian{0, at_least_variance(double(v[task * sizes.channels + c]))};
    };
    const auto keep = [&](int64_t task, int64_t c, Gaussian sum) {
      const int64_t i = task * sizes.channels + c;
      to_mean[i] = A(sum.mean);
      to_variance[i] = double(v[i]) < kLeastVariance ? A(0) : A(sum.variance);
    };
    draw_samples_backward(sizes, data<int64_t>(plain_key), data<A>(plain_gradient), gaussian_of, keep);
  });
  return {d_mean, d_variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("gaussian_sample", TORCH_BOX(&gaussian_sample));
  m.impl("_gaussian_sample_backward", TORCH_BOX(&gaussian_sample_backward));
}

}  // namespace fewseg
