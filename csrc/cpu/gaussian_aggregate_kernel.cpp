// CPU kernels of fewseg::gaussian_aggregate. What the numbers mean is in csrc/ops/gaussian_aggregate.cpp.
#include <tuple>

#include "../common/gaussian_arguments.h"
#include "parallel.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::gaussian_aggregate";

// Calls f(index into [B,C], Shots) for every channel of every task.
template <class A, class F>
void each_channel(const Tensor& mean, const Tensor& variance, const F& f) {
  const int64_t shots = mean.size(1), channels = mean.size(2), count = mean.size(0) * channels;
  parallel(count, count * shots * 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / channels * shots * channels + i % channels;
      f(i, first, Shots<A>{data<A>(mean) + first, data<A>(variance) + first, shots, channels});
    }
  });
}

std::tuple<Tensor, Tensor> gaussian_aggregate(const Tensor& mean, const Tensor& variance,
                                              const std::string& mean_weighting,
                                              const std::string& variance_weighting) {
  check_gaussians(kOp, mean, variance, /*shots=*/true);
  const Weighting weighting = weighting_of(kOp, mean_weighting, variance_weighting);
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  Tensor out_mean = make(mean, {mean.size(0), mean.size(2)}, type);
  Tensor out_variance = make(mean, {mean.size(0), mean.size(2)}, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    A *to_mean = mutable_data<A>(out_mean), *to_variance = mutable_data<A>(out_variance);
    each_channel<A>(means, variances, [&](int64_t i, int64_t, const Shots<A>& shots) {
      const Gaussian result = aggregate(shots, weighting);
      to_mean[i] = A(result.mean);
      to_variance[i] = A(result.variance);
    });
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
  const ScalarType type = accumulator_type(mean.scalar_type());
  const Tensor means = plain(mean, type), variances = plain(variance, type);
  const Tensor gradient_mean = plain(d_mean, type), gradient_variance = plain(d_variance, type);
  const std::vector<int64_t> sizes{mean.size(0), mean.size(1), mean.size(2)};
  Tensor d_means = make(mean, sizes, type), d_variances = make(mean, sizes, type);
  dispatch_gaussian(kOp, mean, [&](auto accumulator) {
    using A = decltype(accumulator);
    const A *from_mean = data<A>(gradient_mean), *from_variance = data<A>(gradient_variance);
    A *to_mean = mutable_data<A>(d_means), *to_variance = mutable_data<A>(d_variances);
    each_channel<A>(means, variances, [&](int64_t i, int64_t first, const Shots<A>& shots) {
      aggregate_backward(shots, weighting, {double(from_mean[i]), double(from_variance[i])}, to_mean + first,
                         to_variance + first);
    });
  });
  return {d_means, d_variances};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("gaussian_aggregate", TORCH_BOX(&gaussian_aggregate));
  m.impl("_gaussian_aggregate_backward", TORCH_BOX(&gaussian_aggregate_backward));
}

}  // namespace fewseg
