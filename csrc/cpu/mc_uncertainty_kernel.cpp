// CPU kernels of fewseg::mc_uncertainty. What the numbers mean is in csrc/ops/mc_uncertainty.cpp.
#include <tuple>

#include "monte_carlo.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::mc_uncertainty";

std::tuple<Tensor, Tensor, Tensor, Tensor> mc_uncertainty(const Tensor& logits,
                                                          const std::optional<std::vector<int64_t>>& size) {
  const MonteCarloSizes sizes(kOp, logits, size);
  const ScalarType storage_type = logits.scalar_type(), type = accumulator_type(storage_type);
  const Tensor plain_logits = plain(logits, type);
  const std::vector<int64_t> of_classes{sizes.tasks, sizes.classes, sizes.h, sizes.w};
  const std::vector<int64_t> of_tasks{sizes.tasks, sizes.h, sizes.w};
  Tensor probabilities = make(logits, of_classes, type), variance = make(logits, of_classes, type);
  Tensor entropy = make(logits, of_tasks, type), mutual_information = make(logits, of_tasks, type);
  dispatch_floating(type, kOp, "logits", [&](auto storage) {
    using A = Accumulator<decltype(storage)>;
    average_samples<A>(sizes, data<A>(plain_logits),
                       {mutable_data<A>(probabilities), mutable_data<A>(variance), mutable_data<A>(entropy),
                        mutable_data<A>(mutual_information)});
  });
  return {with_dtype(probabilities, storage_type), with_dtype(variance, storage_type),
          with_dtype(entropy, storage_type), with_dtype(mutual_information, storage_type)};
}

Tensor mc_uncertainty_backward(const Tensor& gradient, const Tensor& logits) {
  return monte_carlo_backward(kOp, gradient, logits);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("mc_uncertainty", TORCH_BOX(&mc_uncertainty));
  m.impl("_mc_uncertainty_backward", TORCH_BOX(&mc_uncertainty_backward));
}

}  // namespace fewseg
