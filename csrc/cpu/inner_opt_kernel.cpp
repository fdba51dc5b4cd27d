// CPU kernels of fewseg::inner_opt: arguments, scratch, threads and the order of the sweeps. What the numbers mean is
// in csrc/ops/inner_opt.cpp, the inner loops are in inner_opt_kernel.inl.
//
// Tasks run one after another, each with all threads, so that the scratch is one task's packed features however large
// the batch. A task's pixels are cut into chunks of fixed size; one partial sum per chunk, added in order: the bits
// depend neither on the batch nor on the number of threads.
#include <algorithm>
#include <tuple>

#include "../common/backward_arguments.h"
#include "instruction_set.h"
#include "labels.h"
#include "parallel.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::inner_opt";

// --- one task's scratch and its steps --------------------------------------------------------------------------

template <class S>
class Task {
 public:
  using A = Accumulator<S>;

  Task(const FeatureMap& map, const InnerOptSettings& settings)
      : body_(kernel_table().inner_opt.of(S{})),
        map_(map),
        settings_(settings),
        N_(map.pixels),
        C_(map.channels),
        Cp_(padded(map.channels)),
        K_(settings.classes),
        chunks_((N_ + kChunk - 1) / kChunk),
        target_(N_),
        unit_(K_ * Cp_),
        prototype_inverse_norm_(K_),
        difference_((K_ - 1) * Cp_),
        partials_(chunks_ * (K_ - 1) * Cp_) {}

  // Takes the task's features and labels. The first sweep packs them into tiles and inverse_norm, chunk by chunk: it
  // finds each chunk still in the cache.
  template <class Label>
  void load(const S* features, const Label* labels, int64_t task, S* tiles, A* inverse_norm) {
    const int64_t valid = convert_labels(kOp, labels, task, N_, map_.width, K_, settings_.ignore_index, target_.data());
    weight_ = A(settings_.scale / (settings_.mean ? double(std::max<int64_t>(valid, 1)) : 1.0));
    packed_ = {tiles, inverse_norm, target_.data(), C_, Cp_, N_, K_};
    tiles_ = tiles;
    inverse_norm_ = inverse_norm;
    not_packed_ = features;
  }

  void normalise(const A* prototypes) {
    body_.normalise(prototypes, K_, Cp_, unit_.data(), prototype_inverse_norm_.data(), difference_.data());
  }

  // P^i -> P^{i+1} in place; h [K][Cp] and, unless null, d [K-1][N] are filled.
  void descend(A* prototypes, A* h, A* cosine) {
    normalise(prototypes);
    sweep([&](int64_t first, int64_t last, int64_t chunk) {
      body_.descend(packed_, difference_.data(), A(settings_.scale), weight_, first, last, cosine, partial(chunk));
    });
    reduce(h);
    body_.step(unit_.data(), prototype_inverse_norm_.data(), K_, Cp_, A(settings_.lr), h, prototypes);
  }

  // dLoss/dP^{i+1} -> dLoss/dP^i in place, at P^i; coefficient, along and basis collect what dq needs (all null if
  // not).
  void ascend(const A* prototypes, const A* h, const A* cosine, A* v, A* coefficient, A* along, A* basis) {
    normalise(prototypes);
    direction_.resize((K_ - 1) * Cp_);
    b_.resize(K_ * Cp_);
    body_.direction(v, unit_.data(), prototype_inverse_norm_.data(), K_, Cp_, direction_.data());
    sweep([&](int64_t first, int64_t last, int64_t chunk) {
      body_.ascend(packed_, direction_.data(), cosine, A(settings_.scale), weight_, first, last, coefficient, along,
                   partial(chunk));
    });
    reduce(b_.data());
    if (basis) {
      unpad(direction_.data(), K_ - 1, basis);
      unpad(difference_.data(), K_ - 1, basis + (K_ - 1) * C_);
    }
    body_.step_back(unit_.data(), prototype_inverse_norm_.data(), h, K_, Cp_, A(settings_.lr), b_.data(), v);
  }

  // dq from what the steps back collected: dq = -lr (sum_j coefficient[j] basis[j] - along q^) / |q|. `coefficient` and
  // `along` are overwritten by the factors of basis[j] and of q.
  void gradient(const S* features, A* coefficient, const A* basis, A* along, S* d_features) {
    const int64_t count = 2 * (K_ - 1) * settings_.steps;
    const A lr = A(settings_.lr), *inverse_norm = packed_.inverse_norm;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t x = 0; x < N_; ++x) coefficient[j * N_ + x] *= -lr * inverse_norm[x];
    for (int64_t x = 0; x < N_; ++x) along[x] *= lr * inverse_norm[x] * inverse_norm[x];
    const FeaturePlanes<S> planes{features, C_, N_, map_.channel_stride(), map_.pixel_stride()};
    const int64_t rows = map_.channels_last ? N_ : C_, groups = (rows + kTile - 1) / kTile;
    parallel(groups, N_ * C_ * count, [&](int64_t begin, int64_t end) {
      body_.gradient(planes, coefficient, basis, count, along, begin * kTile, std::min(end * kTile, rows), d_features);
    });
  }

  void pad(const A* from, int64_t rows, A* to) const {
    for (int64_t k = 0; k < rows; ++k) {
      std::copy(from + k * C_, from + (k + 1) * C_, to + k * Cp_);
      std::fill(to + k * Cp_ + C_, to + (k + 1) * Cp_, A(0));
    }
  }
  void unpad(const A* from, int64_t rows, A* to) const {
    for (int64_t k = 0; k < rows; ++k) std::copy(from + k * Cp_, from + k * Cp_ + C_, to + k * C_);
  }

 private:
  template <class F>
  void each_chunk(int64_t work_per_value, const F& f) {
    // There and back again: the chunks that one sweep ends with are still in L2 when the next begins with them.
    backwards_ = !backwards_;
    parallel(chunks_, N_ * C_ * work_per_value, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t chunk = backwards_ ? begin + end - 1 - i : i;
        f(chunk * kChunk, std::min((chunk + 1) * kChunk, N_), chunk);
      }
    });
  }
  template <class F>
  void sweep(const F& f) {
    if (not_packed_)
      each_chunk(4, [&](int64_t first, int64_t last, int64_t chunk) {
        body_.pack(not_packed_, C_, N_, map_.channels_last, first, last, tiles_, inverse_norm_);
        f(first, last, chunk);
      });
    else
      each_chunk(2, f);
    not_packed_ = nullptr;
  }
  A* partial(int64_t chunk) { return partials_.data() + chunk * (K_ - 1) * Cp_; }
  // Sums the chunks' partials into the vectors 1..K-1 of `total` [K][Cp].
  void reduce(A* total) { body_.reduce(partials_.data(), chunks_, (K_ - 1) * Cp_, total + Cp_); }

  const InnerOptBodiesOf<S>& body_;
  const FeatureMap& map_;
  const InnerOptSettings& settings_;
  const int64_t N_, C_, Cp_, K_, chunks_;
  A weight_ = 0;
  PackedTask<S> packed_{};
  const S* not_packed_ = nullptr;  // the features, until the first sweep has packed them into the next two
  S* tiles_ = nullptr;
  A* inverse_norm_ = nullptr;
  bool backwards_ = true;
  std::vector<int32_t> target_;
  std::vector<A> unit_, prototype_inverse_norm_, difference_, partials_, direction_, b_;
};

// --- forward ---------------------------------------------------------------------------------------------------

// What the backward needs; null tensors where nothing is to be kept.
struct Saved {
  Tensor trajectory, h, cosine;
};

template <class S>
void forward(const FeatureMap& map, const Tensor& prototypes, const Tensor& target, const InnerOptSettings& settings,
             Tensor& result, Saved* saved) {
  using A = Accumulator<S>;
  const int64_t K = settings.classes, C = map.channels, Cp = padded(C), N = map.pixels;
  const int64_t vectors = K * C, cosines = (K - 1) * N;
  Task<S> task(map, settings);
  const Tensor tiles = make(map.tensor, {Cp * N}, ScalarTypeOf<S>::value);
  std::vector<A> p(K * Cp), h(K * Cp), inverse_norm(N);

  dispatch_labels(kOp, target, [&](const auto* labels) {
    for (int64_t b = 0; b < map.batch; ++b) {
      task.load(data<S>(map.tensor) + b * map.task_size(), labels + b * N, b, mutable_data<S>(tiles),
                inverse_norm.data());
      task.pad(data<A>(prototypes) + b * vectors, K, p.data());
      for (int64_t i = 0; i < settings.steps; ++i) {
        const int64_t index = b * settings.steps + i;
        if (saved) task.unpad(p.data(), K, mutable_data<A>(saved->trajectory) + index * vectors);
        task.descend(p.data(), h.data(), saved ? mutable_data<A>(saved->cosine) + index * cosines : nullptr);
        if (saved) task.unpad(h.data(), K, mutable_data<A>(saved->h) + index * vectors);
      }
      task.unpad(p.data(), K, mutable_data<A>(result) + b * vectors);
    }
  });
}

Tensor run_forward(const Tensor& features, const Tensor& prototypes, const Tensor& target,
                   const InnerOptSettings& settings, Saved* saved) {
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_prototypes = plain(prototypes, accumulator);
  const Tensor plain_target = as_contiguous(target);
  const int64_t B = map.batch, T = settings.steps, K = settings.classes, C = map.channels, N = map.pixels;
  Tensor result = make(features, {B, K, C}, accumulator);
  if (saved) {
    saved->trajectory = make(features, {B, T, K, C}, accumulator);
    saved->h = make(features, {B, T, K, C}, accumulator);
    saved->cosine = make(features, {B, T, K - 1, N}, accumulator);
  }
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    forward<decltype(storage)>(map, plain_prototypes, plain_target, settings, result, saved);
  });
  return with_dtype(result, result_type(features, prototypes));
}

Tensor inner_opt(const Tensor& features, const Tensor& prototypes, const Tensor& target, int64_t steps, double lr,
                 double scale, int64_t ignore_index, const std::string& reduction, bool /*second_order*/) {
  const InnerOptSettings settings =
      check_inner_opt(kOp, features, prototypes, target, steps, lr, scale, ignore_index, reduction);
  return run_forward(features, prototypes, target, settings, nullptr);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> inner_opt_forward(const Tensor& features, const Tensor& prototypes,
                                                             const Tensor& target, int64_t steps, double lr,
                                                             double scale, int64_t ignore_index,
                                                             const std::string& reduction) {
  const InnerOptSettings settings =
      check_inner_opt(kOp, features, prototypes, target, steps, lr, scale, ignore_index, reduction);
  Saved saved;
  Tensor result = run_forward(features, prototypes, target, settings, &saved);
  return {result, saved.trajectory, saved.h, saved.cosine};
}

// --- backward --------------------------------------------------------------------------------------------------

template <class S>
void backward(const FeatureMap& map, const Tensor& gradient, const Tensor& target, const Saved& saved,
              const InnerOptSettings& settings, Tensor& d_prototypes, Tensor* d_features) {
  using A = Accumulator<S>;
  const int64_t K = settings.classes, C = map.channels, Cp = padded(C), N = map.pixels, T = settings.steps;
  const int64_t vectors = K * C, cosines = (K - 1) * N, terms = 2 * (K - 1);
  Task<S> task(map, settings);
  // The packed features fit the gradient's own memory, which is dead until the last sweep, where no channel is padding.
  const bool in_place = d_features && Cp == C;
  const Tensor scratch = make(map.tensor, {in_place ? 0 : Cp * N}, ScalarTypeOf<S>::value);
  std::vector<A> v(K * Cp), p(K * Cp), h(K * Cp), inverse_norm(N);
  std::vector<A> coefficient(d_features ? T * terms * N : 0), along(d_features ? N : 0);
  std::vector<A> basis(d_features ? T * terms * C : 0);

  dispatch_labels(kOp, target, [&](const auto* labels) {
    for (int64_t b = 0; b < map.batch; ++b) {
      const S* features = data<S>(map.tensor) + b * map.task_size();
      S* out = d_features ? mutable_data<S>(*d_features) + b * map.task_size() : nullptr;
      task.load(features, labels + b * N, b, in_place ? out : mutable_data<S>(scratch), inverse_norm.data());
      task.pad(data<A>(gradient) + b * vectors, K, v.data());
      std::fill(along.begin(), along.end(), A(0));
      for (int64_t i = T - 1; i >= 0; --i) {
        const int64_t index = b * T + i;
        task.pad(data<A>(saved.trajectory) + index * vectors, K, p.data());
        task.pad(data<A>(saved.h) + index * vectors, K, h.data());
        task.ascend(p.data(), h.data(), data<A>(saved.cosine) + index * cosines, v.data(),
                    d_features ? coefficient.data() + i * terms * N : nullptr, along.data(),
                    d_features ? basis.data() + i * terms * C : nullptr);
      }
      task.unpad(v.data(), K, mutable_data<A>(d_prototypes) + b * vectors);
      if (d_features) task.gradient(features, coefficient.data(), basis.data(), along.data(), out);
    }
  });
}

std::tuple<Tensor, Tensor> inner_opt_backward(const Tensor& gradient, const Tensor& features, const Tensor& target,
                                              const Tensor& trajectory, const Tensor& h, const Tensor& cosine,
                                              double lr, double scale, int64_t ignore_index,
                                              const std::string& reduction, bool needs_features) {
  check_inner_opt_backward(kOp, gradient, features, target, trajectory, h, cosine);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const InnerOptSettings settings{trajectory.size(1), gradient.size(1), ignore_index, lr, scale, reduction == "mean"};
  const Saved saved{as_contiguous(trajectory), as_contiguous(h), as_contiguous(cosine)};
  const Tensor plain_gradient = plain(gradient, accumulator);
  const Tensor plain_target = as_contiguous(target);
  Tensor d_prototypes = make(features, {map.batch, settings.classes, map.channels}, accumulator);
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    backward<decltype(storage)>(map, plain_gradient, plain_target, saved, settings, d_prototypes,
                                needs_features ? &d_features : nullptr);
  });
  return {d_features, d_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("inner_opt", TORCH_BOX(&inner_opt));
  m.impl("_inner_opt_forward", TORCH_BOX(&inner_opt_forward));
  m.impl("_inner_opt_backward", TORCH_BOX(&inner_opt_backward));
}

}  // namespace fewseg
