// GPU side of fewseg::inner_opt: one launch per step and task batch. What the numbers mean is in
// csrc/ops/inner_opt.cpp.
#include <tuple>

#include "cosine_host.h"
#include "inner_opt.cuh"
#include "labels_host.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::inner_opt";

// The device memory that the launches of one call share.
template <class S>
class Workspace {
 public:
  using A = Accumulator<S>;

  Workspace(const OnDevice& device, const FeatureMap& map, int64_t classes, const Tensor& target,
            const InnerOptSettings& settings)
      : device_(device),
        map_(map),
        classes_(classes),
        settings_(settings),
        labels_(device, kOp, target, classes, settings.ignore_index),
        weight_(labels_.weights<A>(device, settings.scale, settings.mean ? Divisor::task : Divisor::one)),
        inverse_norm_(buffer({map.batch, map.pixels})) {
    const int64_t B = map.batch, C = map.channels, others = classes - 1, tiles = divide_up(map.pixels, kTilePixels);
    arrived_ = torch::stable::new_zeros(map.tensor, std::vector<int64_t>{B}, ScalarType::Int);
    vectors_ = {buffer({B, classes, C}), buffer({B, classes}),          buffer({B, others, C}),
                buffer({B, others, C}),  buffer({B, tiles, others, C}), buffer({B, classes, C})};
    state = {pointer(0),   pointer(1), pointer(2), pointer(3), pointer(4), pointer(5), mutable_data<int>(arrived_),
             int(classes), C};
    descent = {A(settings.scale), A(settings.lr), data<A>(weight_), data<A>(inverse_norm_),
               data<int32_t>(labels_.classes)};
    const LaunchPlan plan = plan_cosines<A>(B, map.pixels, 1);
    const auto norms = map.channels_last ? inverse_norms_kernel<true, S, A> : inverse_norms_kernel<false, S, A>;
    run(device, norms, plan, features_of<S>(map), mutable_data<A>(inverse_norm_));
  }

  Tensor buffer(const std::vector<int64_t>& sizes) const { return make(map_.tensor, sizes, ScalarTypeOf<A>::value); }

  void prepare(const A* prototypes, int64_t task_stride, const A* v) const {
    run(device_, prepare_kernel<A>, plan_rows<A>(map_.batch), state, prototypes, task_stride, v);
  }

  void descend(const A* from, A* to, A* h, int64_t task_stride, A* cosine, int64_t cosine_stride) const {
    choose_kernel(map_.channels_last, classes_, [&](auto layout, auto held) {
      run(device_, descend_kernel<layout.kValue, held.kValue, S, A>,
          plan_sweep<A>(map_.batch, map_.pixels, classes_ - 1, held.kValue, 1), features_of<S>(map_), state, descent,
          from, to, h, task_stride, cosine, cosine_stride);
    });
  }

  void ascend(const A* previous, const A* h, int64_t task_stride, const A* cosine, int64_t cosine_stride, A* v,
              A* coefficient, int64_t coefficient_stride, A* own, A* basis, int64_t basis_stride) const {
    choose_kernel(map_.channels_last, classes_, [&](auto layout, auto held) {
      run(device_, ascend_kernel<layout.kValue, held.kValue, S, A>,
          plan_sweep<A>(map_.batch, map_.pixels, classes_ - 1, held.kValue, 2), features_of<S>(map_), state, descent,
          previous, h, task_stride, cosine, cosine_stride, v, coefficient, coefficient_stride, own, basis,
          basis_stride);
    });
  }

  DescentState<A> state;
  Descent<A> descent;

 private:
  A* pointer(size_t i) const { return mutable_data<A>(vectors_[i]); }

  const OnDevice& device_;
  const FeatureMap& map_;
  const int64_t classes_;
  const InnerOptSettings settings_;
  const DeviceLabels labels_;
  const Tensor weight_, inverse_norm_;
  Tensor arrived_;
  std::vector<Tensor> vectors_;
};

// trajectory [B,T+1,K,C] holds P^0 and receives P^1..P^T; h [B,T+1,K,C]; cosine [B,T,K-1,N] may be undefined.
template <class S>
void forward(const OnDevice& device, const FeatureMap& map, const Tensor& target, const InnerOptSettings& settings,
             int64_t classes, const Tensor& trajectory, const Tensor& h, const Tensor* cosine) {
  using A = Accumulator<S>;
  const Workspace<S> work(device, map, classes, target, settings);
  const int64_t vectors = classes * map.channels, cosines = (classes - 1) * map.pixels;
  const int64_t task_stride = (settings.steps + 1) * vectors;
  A* p = mutable_data<A>(trajectory);
  work.prepare(p, task_stride, nullptr);
  for (int64_t i = 0; i < settings.steps; ++i)
    work.descend(p + i * vectors, p + (i + 1) * vectors, mutable_data<A>(h) + i * vectors, task_stride,
                 cosine ? mutable_data<A>(*cosine) + i * cosines : nullptr, settings.steps * cosines);
}

// Returns P^T; the saved tensors where they are asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(const Tensor& features, const Tensor& prototypes,
                                                       const Tensor& target, const InnerOptSettings& settings,
                                                       bool save) {
  const OnDevice device(features);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const int64_t B = map.batch, T = settings.steps, K = prototypes.size(1), C = map.channels;
  Tensor trajectory = make(features, {B, T + 1, K, C}, accumulator), h = make(features, {B, T + 1, K, C}, accumulator);
  Tensor cosine = make(features, {B, save ? T : 0, K - 1, map.pixels}, accumulator);
  Tensor first = torch::stable::select(trajectory, 1, 0), last = torch::stable::select(trajectory, 1, T);
  torch::stable::copy_(first, prototypes);
  const Tensor plain_target = as_contiguous(target);
  if (B > 0)
    dispatch_floating(type, kOp, "features", [&](auto storage) {
      forward<decltype(storage)>(device, map, plain_target, settings, K, trajectory, h, save ? &cosine : nullptr);
    });
  const bool keep = prototypes.scalar_type() == accumulator;
  Tensor result = make(features, {B, K, C}, keep ? accumulator : type);
  torch::stable::copy_(result, last);
  return {result, trajectory, h, cosine};
}

Tensor inner_opt(const Tensor& features, const Tensor& prototypes, const Tensor& target, int64_t steps, double lr,
                 double scale, int64_t ignore_index, const std::string& reduction, bool /*second_order*/) {
  const InnerOptSettings settings =
      check_inner_opt(kOp, features, prototypes, target, steps, lr, scale, ignore_index, reduction);
  return std::get<0>(run_forward(features, prototypes, target, settings, false));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> inner_opt_forward(const Tensor& features, const Tensor& prototypes,
                                                             const Tensor& target, int64_t steps, double lr,
                                                             double scale, int64_t ignore_index,
                                                             const std::string& reduction) {
  const InnerOptSettings settings =
      check_inner_opt(kOp, features, prototypes, target, steps, lr, scale, ignore_index, reduction);
  auto [result, trajectory, h, cosine] = run_forward(features, prototypes, target, settings, true);
  // The schema promises P^0..P^{T-1} and h^0..h^{T-1}.
  Tensor before =
      make(features, {trajectory.size(0), steps, trajectory.size(2), trajectory.size(3)}, trajectory.scalar_type());
  Tensor sums = torch::stable::empty_like(before);
  Tensor all_but_last = torch::stable::narrow(trajectory, 1, 0, steps),
         sums_view = torch::stable::narrow(h, 1, 0, steps);
  torch::stable::copy_(before, all_but_last);
  torch::stable::copy_(sums, sums_view);
  return {result, before, sums, cosine};
}

template <class S>
void backward(const OnDevice& device, const FeatureMap& map, const Tensor& target, const InnerOptSettings& settings,
              int64_t classes, const Tensor& trajectory, const Tensor& h, const Tensor& cosine, const Tensor& v,
              Tensor* d_features) {
  using A = Accumulator<S>;
  const Workspace<S> work(device, map, classes, target, settings);
  const int64_t B = map.batch, T = settings.steps, C = map.channels, N = map.pixels, terms = 2 * (classes - 1);
  const int64_t vectors = classes * C, cosines = (classes - 1) * N;
  const bool collect = d_features != nullptr;
  const Tensor coefficient = work.buffer({collect ? B : 0, T, terms, N}),
               basis = work.buffer({collect ? B : 0, T, terms, C});
  Tensor own = torch::stable::new_zeros(map.tensor, std::vector<int64_t>{B, N}, ScalarTypeOf<A>::value);
  const A *p = data<A>(trajectory), *sums = data<A>(h), *d = data<A>(cosine);
  A *c = collect ? mutable_data<A>(coefficient) : nullptr, *b = collect ? mutable_data<A>(basis) : nullptr;
  if (T > 0) work.prepare(p + (T - 1) * vectors, T * vectors, data<A>(v));
  for (int64_t i = T - 1; i >= 0; --i)
    work.ascend(i > 0 ? p + (i - 1) * vectors : nullptr, sums + i * vectors, T * vectors, d + i * cosines, T * cosines,
                mutable_data<A>(v), collect ? c + i * terms * N : nullptr, T * terms * N,
                collect ? mutable_data<A>(own) : nullptr, collect ? b + i * terms * C : nullptr, T * terms * C);
  if (collect) run_combine<S>(device, map, c, b, T * terms, data<A>(own), mutable_data<S>(*d_features));
}

std::tuple<Tensor, Tensor> inner_opt_backward(const Tensor& gradient, const Tensor& features, const Tensor& target,
                                              const Tensor& trajectory, const Tensor& h, const Tensor& cosine,
                                              double lr, double scale, int64_t ignore_index,
                                              const std::string& reduction, bool needs_features) {
  const OnDevice device(features);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const InnerOptSettings settings{trajectory.size(1), gradient.size(1), ignore_index, lr, scale, reduction == "mean"};
  Tensor d_prototypes = make(features, {map.batch, gradient.size(1), map.channels}, accumulator);
  torch::stable::copy_(d_prototypes, gradient);
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  const Tensor plain_target = as_contiguous(target), plain_trajectory = as_contiguous(trajectory);
  const Tensor plain_h = as_contiguous(h), plain_cosine = as_contiguous(cosine);
  if (map.batch > 0)
    dispatch_floating(type, kOp, "features", [&](auto storage) {
      backward<decltype(storage)>(device, map, plain_target, settings, gradient.size(1), plain_trajectory, plain_h,
                                  plain_cosine, d_prototypes, needs_features ? &d_features : nullptr);
    });
  return {d_features, d_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("inner_opt", TORCH_BOX(&inner_opt));
  m.impl("_inner_opt_forward", TORCH_BOX(&inner_opt_forward));
  m.impl("_inner_opt_backward", TORCH_BOX(&inner_opt_backward));
}

}  // namespace fewseg
