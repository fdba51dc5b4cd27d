// GPU side of fewseg::gaussian_aggregate. What the numbers mean is in csrc/ops/gaussian_aggregate.cpp.
#include <tuple>

#include "../common/gaussian_arguments.h"
#include "gaussian_aggregate.cuh"
#include "host.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::gaussian_aggregate";

template <class A>
DeviceShots<A> shots_of(const Tensor& mean, const Tensor& variance) {
  return {data<A>(mean), data<A>(variance), mean.size(0), mean.size(1), mean.size(2)};
}

std::tuple<Tensor, Tensor> gaussian_aggregate(const Tensor& mean, const Tensor& variance,
                                              const std::string& mean_weighting,
                                              const std::string& variance_weighting) {
  check_gaussians(kOp, mean, variance, /*shots=*/true);
  const Weighting weighting = weighting_of(kOp, mean_weighting, variance_weighting);
  const OnDevice device(mean);
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const int64_t count = mean.size(0) * mean.size(2);
  Tensor out_mean = make(mean, {mean.size(0), mean.size(2)}, type);
  Tensor out_variance = make(mean, {mean.size(0), mean.size(2)}, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    run(device, gaussian_aggregate_kernel<A>, plan_elements(count), shots_of<A>(means, variances), weighting,
        mutable_data<A>(out_mean), mutable_data<A>(out_variance));
  });
  const ScalarType result = result_type(mean, variance);
  return {with_dtype(out_mean, result), with_dtype(out_variance, result)};
}

std::tuple<Tensor, Tensor> gaussian_aggregate_backward(const Tensor& d_mean, const Tensor& d_variance,
                                                       const Tensor& mean, const Tensor& variance,
                                                       const std::string& mean_weighting,
                                                       const std::string& variance_weighting) {
  check_gaussians(kOp, mean, variance, /*shots=*/true);
  check_sizes(kOp, "d_mean", d_mean, mean, {mean.size(0), mean.size(2)});
  check_sizes(kOp, "d_variance", d_variance, mean, {mean.size(0), mean.size(2)});
  const Weighting weighting = weighting_of(kOp, mean_weighting, variance_weighting);
  const OnDevice device(mean);
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const Tensor gradient_mean = plain(d_mean, type), gradient_variance = plain(d_variance, type);
  const std::vector<int64_t> sizes{mean.size(0), mean.size(1), mean.size(2)};
  Tensor d_means = make(mean, sizes, type), d_variances = make(mean, sizes, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    run(device, gaussian_aggregate_backward_kernel<A>, plan_elements(sizes[0] * sizes[2]),
        shots_of<A>(means, variances), weighting, data<A>(gradient_mean), data<A>(gradient_variance),
        mutable_data<A>(d_means), mutable_data<A>(d_variances));
  });
  return {d_means, d_variances};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("gaussian_aggregate", TORCH_BOX(&gaussian_aggregate));
  m.impl("_gaussian_aggregate_backward", TORCH_BOX(&gaussian_aggregate_backward));
}

}  // namespace fewseg
