// GPU side of fewseg::inner_opt: the resident kernel where a task fits onto the device, single steps elsewhere. What
// the numbers mean is in csrc/ops/inner_opt.cpp.
#include <tuple>
#include <type_traits>

#include "cosine_host.h"
#include "inner_opt_resident.cuh"
#include "inner_opt_steps.cuh"
#include "labels_host.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::inner_opt";

// One call's plan and what its launches share.
template <class S>
class InnerOpt {
 public:
  using A = Accumulator<S>;

  InnerOpt(const OnDevice& device, const FeatureMap& map, const Tensor& target, const InnerOptSettings& settings,
           bool backward)
      : device_(device),
        map_(map),
        settings_(settings),
        size_{map.batch, settings.classes, map.channels, map.pixels, sizeof(S), sizeof(A), backward},
        plan_(plan_inner_opt(size_, device_limits())),
        labels_(device, kOp, target, settings.classes, settings.ignore_index),
        weight_(labels_.weights<A>(device, settings.scale, settings.mean ? Divisor::task : Divisor::one)),
        cut_{plan_.chunk_pixels, int(plan_.chunks_per_block)} {
    const int64_t width = (settings.classes - 1) * map.channels;
    parts_ = buffer({plan_.tasks_at_a_time, plan_.chunks, width});
    sums_ = buffer({backward ? plan_.tasks_at_a_time : 0, width});
  }

  Tensor buffer(const std::vector<int64_t>& sizes) const { return make(map_.tensor, sizes, ScalarTypeOf<A>::value); }

  // trajectory [B,T+1,K,C] holds P^0 and receives P^1..P^T; h [B,T+1,K,C]; cosine [B,T,K-1,N] or null.
  void forward(A* trajectory, A* h, A* cosine) const {
    const int64_t T = settings_.steps, size = vectors(), d = cosines();
    if (T == 0) return;
    if (plan_.resident) {
      each_round([&](int64_t first, int64_t tasks) {
        choose([&](auto held) {
          run(device_, resident_descend_kernel<held.kValue, S, A>, plan_.sweep(tasks), features(first), descent(first),
              cut_, T, trajectory + first * (T + 1) * size, h + first * (T + 1) * size,
              cosine ? cosine + first * T * d : nullptr, parts());
        });
      });
      return;
    }
    const Steps steps(*this);
    const int64_t stride = (T + 1) * size;
    steps.prepare(trajectory, stride, nullptr);
    for (int64_t i = 0; i < T; ++i) {
      choose([&](auto staged, auto held) {
        run(device_, descend_kernel<staged.kValue, held.kValue, S, A>, plan_.sweep(pixels_matter()), features(0),
            steps.state, descent(0), cut_, cosine ? cosine + i * d : nullptr, T * d);
      });
      run(device_, take_step_kernel<A>, plan_sums(size_), steps.state, descent(0), map_.channels, plan_.chunks,
          trajectory + i * size, trajectory + (i + 1) * size, h + i * size, stride);
    }
  }

  // v_even or v_odd [B,K,C], as T is even or odd, holds dLoss/dP^T; v_even receives dLoss/dP^0. trajectory and h
  // [B,T,K,C], cosine [B,T,K-1,N]; d_features may be null.
  void backward(const A* trajectory, const A* h, const A* cosine, A* v_even, A* v_odd, S* d_features) const {
    const int64_t B = map_.batch, T = settings_.steps, C = map_.channels, N = map_.pixels;
    const int64_t size = vectors(), d = cosines(), terms = 2 * (settings_.classes - 1);
    const bool collect = d_features != nullptr;
    const Tensor coefficients = buffer({collect ? B : 0, T, terms, N}),
                 vectors = buffer({collect ? B : 0, T, terms, C});
    const Tensor owns =
        torch::stable::new_zeros(map_.tensor, std::vector<int64_t>{collect ? B : 0, N}, ScalarTypeOf<A>::value);
    A* coefficient = collect ? mutable_data<A>(coefficients) : nullptr;
    A* basis = collect ? mutable_data<A>(vectors) : nullptr;
    A* own = collect ? mutable_data<A>(owns) : nullptr;
    const auto at = [](auto* pointer, int64_t offset) { return pointer ? pointer + offset : pointer; };
    if (T > 0 && plan_.resident)
      each_round([&](int64_t first, int64_t tasks) {
        choose([&](auto held) {
          run(device_, resident_ascend_kernel<held.kValue, S, A>, plan_.sweep(tasks), features(first), descent(first),
              cut_, T, trajectory + first * T * size, h + first * T * size, cosine + first * T * d,
              v_even + first * size, v_odd + first * size, parts(), mutable_data<A>(sums_),
              at(coefficient, first * T * terms * N), at(basis, first * T * terms * C), at(own, first * N));
        });
      });
    if (T > 0 && !plan_.resident) {
      const Steps steps(*this);
      steps.prepare(trajectory + (T - 1) * size, T * size, T % 2 ? v_odd : v_even);
      for (int64_t i = T - 1; i >= 0; --i) {
        const Collected<A> collected{at(coefficient, i * terms * N), nullptr, own};
        choose([&](auto staged, auto held) {
          run(device_, ascend_kernel<staged.kValue, held.kValue, S, A>, plan_.sweep(pixels_matter()), features(0),
              steps.state, descent(0), cut_, cosine + i * d, T * d, T, collected);
        });
        run(device_, step_back_kernel<A>, plan_sums(size_), steps.state, descent(0), C, plan_.chunks,
            trajectory + i * size, i > 0 ? trajectory + (i - 1) * size : nullptr, h + i * size, T * size, T,
            i % 2 ? v_even : v_odd, i % 2 ? v_odd : v_even, at(basis, i * terms * C));
      }
    }
    if (collect) run_combine<S>(device_, map_, coefficient, basis, T * terms, own, d_features);
  }

 private:
  // What only the launches of single steps need.
  struct Steps {
    explicit Steps(const InnerOpt& call) : call_(call) {
      const int64_t B = call.map_.batch, K = call.settings_.classes;
      vectors_ = call.buffer({B, K, call.map_.channels});
      prototype_inverse_norm_ = call.buffer({B, K});
      inverse_norm_ = call.buffer({B, call.map_.pixels});
      arrived_ = torch::stable::new_zeros(call.map_.tensor, std::vector<int64_t>{B}, ScalarType::Int);
      state = {mutable_data<A>(vectors_),      mutable_data<A>(prototype_inverse_norm_),
               mutable_data<A>(inverse_norm_), call.parts(),
               mutable_data<A>(call.sums_),    mutable_data<int>(arrived_)};
      const auto norms = call.plan_.staged ? chunk_norms_kernel<true, S, A> : chunk_norms_kernel<false, S, A>;
      run(call.device_, norms, call.plan_.sweep(call.pixels_matter()), call.features(0), state, call.cut_, K,
          call.size_.backward);
    }

    void prepare(const A* prototypes, int64_t task_stride, const A* v) const {
      run(call_.device_, prepare_kernel<A>, plan_prepare<A>(call_.map_.batch), state, call_.settings_.classes,
          call_.map_.channels, prototypes, task_stride, v);
    }

    DescentState<A> state;

   private:
    const InnerOpt& call_;
    Tensor vectors_, prototype_inverse_norm_, inverse_norm_, arrived_;
  };

  int64_t vectors() const { return settings_.classes * map_.channels; }
  int64_t cosines() const { return (settings_.classes - 1) * map_.pixels; }
  // The tasks whose pixels a sweep has to look at: with one class it makes no difference what they are.
  int64_t pixels_matter() const { return settings_.classes > 1 ? map_.batch : 0; }
  A* parts() const { return mutable_data<A>(parts_); }

  Features<S> features(int64_t first) const {
    Features<S> f = features_of<S>(map_);
    f.data += first * map_.task_size();
    return f;
  }
  Descent<A> descent(int64_t first) const {
    return {A(settings_.scale), A(settings_.lr), data<A>(weight_) + first,
            data<int32_t>(labels_.classes) + first * map_.pixels, int(settings_.classes)};
  }

  // f(first task, tasks) for as many tasks at a time as fit onto the device.
  template <class F>
  void each_round(const F& f) const {
    for (int64_t first = 0; first < map_.batch; first += plan_.tasks_at_a_time)
      f(first, std::min(plan_.tasks_at_a_time, map_.batch - first));
  }

  // f(Number<classes held>) for the resident kernels, f(Flag<staged>, Number<classes held>) for the others.
  template <class F>
  void choose(const F& f) const {
    const auto by_classes = [&](auto... staged) {
      if (plan_.classes_at_a_time == kFewSums)
        f(staged..., Number<kFewSums>{});
      else
        f(staged..., Number<kManySums>{});
    };
    if constexpr (std::is_invocable_v<F, Number<kFewSums>>)
      by_classes();
    else
      plan_.staged ? by_classes(Flag<true>{}) : by_classes(Flag<false>{});
  }

  const OnDevice& device_;
  const FeatureMap& map_;
  const InnerOptSettings settings_;
  const InnerOptSize size_;
  const InnerOptPlan plan_;
  const DeviceLabels labels_;
  const Tensor weight_;
  const Cut cut_;
  Tensor parts_, sums_;
};

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
      using S = decltype(storage);
      using A = Accumulator<S>;
      InnerOpt<S>(device, map, plain_target, settings, false)
          .forward(mutable_data<A>(trajectory), mutable_data<A>(h), save ? mutable_data<A>(cosine) : nullptr);
    });
  Tensor result = make(features, {B, K, C}, result_type(features, prototypes));
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

std::tuple<Tensor, Tensor> inner_opt_backward(const Tensor& gradient, const Tensor& features, const Tensor& target,
                                              const Tensor& trajectory, const Tensor& h, const Tensor& cosine,
                                              double lr, double scale, int64_t ignore_index,
                                              const std::string& reduction, bool needs_features) {
  check_inner_opt_backward(kOp, gradient, features, target, trajectory, h, cosine);
  const OnDevice device(features);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const InnerOptSettings settings{trajectory.size(1), gradient.size(1), ignore_index, lr, scale, reduction == "mean"};
  Tensor d_prototypes = make(features, {map.batch, gradient.size(1), map.channels}, accumulator);
  Tensor other = torch::stable::empty_like(d_prototypes);
  torch::stable::copy_(settings.steps % 2 ? other : d_prototypes, gradient);
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  const Tensor plain_target = as_contiguous(target), plain_trajectory = as_contiguous(trajectory);
  const Tensor plain_h = as_contiguous(h), plain_cosine = as_contiguous(cosine);
  if (map.batch > 0)
    dispatch_floating(type, kOp, "features", [&](auto storage) {
      using S = decltype(storage);
      using A = Accumulator<S>;
      InnerOpt<S>(device, map, plain_target, settings, true)
          .backward(data<A>(plain_trajectory), data<A>(plain_h), data<A>(plain_cosine), mutable_data<A>(d_prototypes),
                    mutable_data<A>(other), needs_features ? mutable_data<S>(d_features) : nullptr);
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
