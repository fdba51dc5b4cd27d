// GPU side of fewseg::mc_average. What the numbers mean is in csrc/ops/mc_average.cpp.
#include "monte_carlo_host.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::mc_average";

Tensor mc_average(const Tensor& logits, const std::optional<std::vector<int64_t>>& size) {
  const MonteCarloSizes sizes(kOp, logits, size);
  const OnDevice device(logits);
  const ScalarType type = accumulator_type(logits.scalar_type());
  const Tensor plain_logits = plain(logits, type);
  Tensor probabilities = make(logits, {sizes.tasks, sizes.classes, sizes.h, sizes.w}, type);
  dispatch_floating(type, kOp, "logits", [&](auto storage) {
    using A = Accumulator<decltype(storage)>;
    average_samples<A>(device, sizes, plain_logits, mutable_data<A>(probabilities), nullptr, nullptr, nullptr);
  });
  return with_dtype(probabilities, logits.scalar_type());
}

Tensor mc_average_backward(const Tensor& gradient, const Tensor& logits) {
  return monte_carlo_backward(kOp, gradient, logits);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("mc_average", TORCH_BOX(&mc_average));
  m.impl("_mc_average_backward", TORCH_BOX(&mc_average_backward));
}

}  // namespace fewseg
