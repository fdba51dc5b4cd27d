// CPU kernels of fewseg::sample_prototypes. What the numbers mean is in csrc/ops/sample_prototypes.cpp.
#include <tuple>

#include "gaussian_noise.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::sample_prototypes";

// The shots of one channel of contiguous means and variances [B,S,C].
template <class A>
Shots<A> shots_of(const Tensor& mean, const Tensor& variance, int64_t task, int64_t c) {
  const int64_t first = task * mean.size(1) * mean.size(2) + c;
  return {data<A>(mean) + first, data<A>(variance) + first, mean.size(1), mean.size(2)};
}

Tensor sample_prototypes(const Tensor& mean, const Tensor& variance, int64_t num_samples, const Tensor& key) {
  check_gaussians(kOp, mean, variance, /*shots=*/true);
  check_noise(kOp, mean, num_samples, key);
  const Samples sizes{mean.size(0), num_samples, mean.size(2)};
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const Tensor plain_key = as_contiguous(key);
  Tensor z = make(mean, {sizes.tasks, sizes.samples, sizes.channels}, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    const auto gaussian_of = [&](int64_t task, int64_t c) {
      return aggregate(shots_of<A>(means, variances, task, c), Weighting());
    };
    draw_samples(sizes, data<int64_t>(plain_key), gaussian_of, mutable_data<A>(z));
  });
  return with_dtype(z, result_type(mean, variance));
}

std::tuple<Tensor, Tensor> sample_prototypes_backward(const Tensor& gradient, const Tensor& mean,
                                                      const Tensor& variance, const Tensor& key) {
  check_gaussians(kOp, mean, variance, /*shots=*/true);
  check_sample_backward(kOp, gradient, mean, key, /*shots=*/true);
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Samples sizes{gradient.size(0), gradient.size(1), gradient.size(2)};
  const Tensor plain_gradient = plain(gradient, type), plain_key = as_contiguous(key);
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const std::vector<int64_t> like{mean.size(0), mean.size(1), mean.size(2)};
  Tensor d_mean = make(mean, like, type), d_variance = make(mean, like, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    A *to_mean = mutable_data<A>(d_mean), *to_variance = mutable_data<A>(d_variance);
    const auto gaussian_of = [&](int64_t task, int64_t c) {
      return aggregate(shots_of<A>(means, variances, task, c), Weighting());
    };
    const auto spread = [&](int64_t task, int64_t c, Gaussian sum) {
      const int64_t first = task * mean.size(1) * mean.size(2) + c;
      aggregate_backward(shots_of<A>(means, variances, task, c), Weighting(), sum, to_mean + first,
                         to_variance + first);
    };
    draw_samples_backward(sizes, data<int64_t>(plain_key), data<A>(plain_gradient), gaussian_of, spread);
  });
  return {d_mean, d_variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("sample_prototypes", TORCH_BOX(&sample_prototypes));
  m.impl("_sample_prototypes_backward", TORCH_BOX(&sample_prototypes_backward));
}

}  // namespace fewseg
