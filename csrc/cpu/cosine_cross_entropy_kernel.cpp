// CPU kernels of fewseg::cosine_cross_entropy: arguments, threads and the order of the sums. What the numbers mean is
// in csrc/ops/cosine_cross_entropy.cpp, the inner loops are in cosine_kernel.inl.
//
// The logits are upsampled in two steps: along x for the few rows of the features, along y one target row at a time, in
// registers. So nothing of the size K x h x w is ever stored, only K x H x w.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "../common/bilinear.h"
#include "cosine.h"
#include "labels.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::cosine_cross_entropy";

// A batch's labels, converted and counted.
struct Labels {
  std::vector<int32_t> classes;
  std::vector<int64_t> valid;  // per task

  Labels(const Tensor& target, int64_t count, int64_t ignore_index) : classes(target.numel()), valid(target.size(0)) {
    const int64_t size = target.size(1) * target.size(2);
    dispatch_labels(kOp, target, [&](const auto* labels) {
      for (int64_t task = 0; task < target.size(0); ++task)
        valid[task] = convert_labels(kOp, labels + task * size, task, size, target.size(2), count, ignore_index,
                                     classes.data() + task * size);
    });
  }

  // What a task's summed loss is divided by.
  double divisor(Divisor reduction, int64_t task) const {
    if (reduction == Divisor::one) return 1;
    int64_t count = 0;
    if (reduction == Divisor::task)
      count = valid[task];
    else
      for (const int64_t n : valid) count += n;
    return double(std::max<int64_t>(count, 1));
  }
};

// The differences of the cosines against class 0, of all tasks, upsampled along x: [B,K-1,H,padded w].
template <class A>
class Upsampled {
 public:
  Upsampled(const CosineBodiesOf<A>& body, const FeatureMap& map, const A* cosine, int64_t K, Bands<A> columns)
      : height_(map.height),
        others_(K - 1),
        width_(columns.outputs),
        padded_width_(padded(width_)),
        values_(map.batch * others_ * height_ * padded_width_) {
    const int64_t rows = map.batch * others_ * height_, W = map.width;
    parallel(rows, rows * width_ * 2, [&](int64_t begin, int64_t end) {
      std::vector<A> difference(W);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t task = i / (others_ * height_), k = i / height_ % others_, row = i % height_;
        const A* background = cosine + (task * K * height_ + row) * W;
        const A* foreground = background + (k + 1) * height_ * W;
        for (int64_t x = 0; x < W; ++x) difference[x] = foreground[x] - background[x];
        body.upsample_row(difference.data(), columns, values_.data() + i * padded_width_);
      }
    });
  }

  CrossEntropyRows<A> task(int64_t task, Bands<A> rows, const Labels& labels, double scale) const {
    return {values_.data() + task * others_ * height_ * padded_width_, others_, height_, width_, padded_width_, rows,
            labels.classes.data() + task * rows.outputs * width_,      A(scale)};
  }
  int64_t padded_width() const { return padded_width_; }

 private:
  const int64_t height_, others_, width_, padded_width_;
  std::vector<A> values_;
};

template <class S>
void forward(const FeatureMap& map, const Tensor& prototypes, const Tensor& target, double scale, int64_t ignore_index,
             Divisor reduction, Tensor& loss, Tensor& cosine, Tensor& inverse_norm) {
  using A = Accumulator<S>;
  const auto& body = kernel_table().cosine.of(A{});
  const int64_t B = map.batch, K = prototypes.size(1), h = target.size(1), w = target.size(2);
  const Labels labels(target, K, ignore_index);
  const UnitPrototypes<A> unit(data<A>(prototypes), B * K, map.channels);
  cosines<S>(map, unit.unit.data(), K, mutable_data<A>(inverse_norm), mutable_data<A>(cosine));

  const BilinearResize<A> resize(map.height, map.width, h, w, /*transposed=*/false);
  const Upsampled<A> upsampled(body, map, data<A>(cosine), K, resize.columns.bands());
  const Bands<A> rows = resize.rows.bands();
  std::vector<double> row_loss(B * h);
  parallel(B * h, B * K * h * w * 8, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch((K - 1) * kTile);
    for (int64_t i = begin; i < end; ++i)
      row_loss[i] = body.loss_rows(upsampled.task(i / h, rows, labels, scale), i % h, i % h + 1, scratch.data());
  });

  A* result = mutable_data<A>(loss);
  double total = 0;
  for (int64_t task = 0; task < B; ++task) {
    double task_loss = 0;
    for (int64_t y = 0; y < h; ++y) task_loss += row_loss[task * h + y];
    task_loss /= labels.divisor(reduction, task);
    if (reduction == Divisor::task) result[task] = A(task_loss);
    total += task_loss;
  }
  if (reduction != Divisor::task) result[0] = A(total);
}

// dLoss/dc [B,K,N]: the residuals of the target's rows, pulled down along y and then along x.
template <class A>
std::vector<A> pull_down(const FeatureMap& map, const A* cosine, const A* gradient, const Tensor& target, int64_t K,
                         double scale, int64_t ignore_index, Divisor reduction) {
  const auto& body = kernel_table().cosine.of(A{});
  const auto& pool = kernel_table().masked_avg_pool.of(A{});
  const int64_t B = map.batch, H = map.height, W = map.width, h = target.size(1), w = target.size(2);
  const Labels labels(target, K, ignore_index);
  const BilinearResize<A> up(H, W, h, w, /*transposed=*/false), down(H, W, h, w, /*transposed=*/true);
  const Bands<A> rows = up.rows.bands();
  const Upsampled<A> upsampled(body, map, cosine, K, up.columns.bands());
  const int64_t others = K - 1, width = upsampled.padded_width();

  // Every target row lies between two feature rows, i and i + 1, and adds to both. One worker takes all rows of an i
  // and keeps what it has for i apart from what it has for i + 1, so that no row is computed twice and sums have one
  // order.
  std::vector<A> to_row(B * H * others * width), to_next(B * H * others * width);
  parallel(B * H, B * K * h * w * 8, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch(others * kTile);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / H, row = i % H;
      const int64_t* first = std::lower_bound(rows.begin, rows.begin + h, row);
      const int64_t* last = std::upper_bound(rows.begin, rows.begin + h, row);
      const double factor = scale * double(gradient[reduction == Divisor::task ? task : 0]);
      body.residual_rows(upsampled.task(task, rows, labels, scale), first - rows.begin, last - rows.begin,
                         A(factor / labels.divisor(reduction, task)), scratch.data(),
                         to_row.data() + i * others * width, to_next.data() + i * others * width);
    }
  });

  // to_row[i] + to_next[i - 1], then the adjoint along x. A pixel's residuals sum to zero, so class 0 has minus the sum
  // of the others'.
  std::vector<A> d_cosine(B * K * H * W);
  const A ones[] = {1};
  const int64_t zero[] = {0}, offsets[] = {0, 1};
  const Bands<A> single{1, 1, zero, offsets, ones};
  parallel(B * H, B * others * H * w * 2, [&](int64_t begin, int64_t end) {
    std::vector<A> sum(w), scratch(w);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / H, row = i % H;
      A* background = d_cosine.data() + (task * K * H + row) * W;
      for (int64_t k = 0; k < others; ++k) {
        const A* here = to_row.data() + (i * others + k) * width;
        const A* above = row > 0 ? to_next.data() + ((i - 1) * others + k) * width : nullptr;
        for (int64_t x = 0; x < w; ++x) sum[x] = here[x] + (above ? above[x] : A(0));
        A* foreground = background + (k + 1) * H * W;
        pool.resize_mask_row(sum.data(), single, down.columns.bands(), 0, scratch.data(), foreground);
        for (int64_t x = 0; x < W; ++x) background[x] -= foreground[x];
      }
    }
  });
  return d_cosine;
}

std::tuple<Tensor, Tensor, Tensor> cosine_cross_entropy_forward(const Tensor& features, const Tensor& prototypes,
                                                                const Tensor& target, double scale,
                                                                int64_t ignore_index, const std::string& reduction) {
  check_features(kOp, features);
  check_prototypes(kOp, features, prototypes);
  check_target(kOp, features, target);
  check_finite(kOp, "scale", scale);
  const Divisor kind = loss_divisor(kOp, reduction);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_prototypes = plain(prototypes, accumulator);
  const Tensor plain_target = as_contiguous(target);
  std::vector<int64_t> size;
  if (kind == Divisor::task) size.push_back(map.batch);
  Tensor loss = make(features, size, accumulator);
  Tensor cosine = make(features, {map.batch, prototypes.size(1), map.pixels}, accumulator);
  Tensor inverse_norm = make(features, {map.batch, map.pixels}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    forward<decltype(storage)>(map, plain_prototypes, plain_target, scale, ignore_index, kind, loss, cosine,
                               inverse_norm);
  });
  return {with_dtype(loss, result_type(features, prototypes)), cosine, inverse_norm};
}

Tensor cosine_cross_entropy(const Tensor& features, const Tensor& prototypes, const Tensor& target, double scale,
                            int64_t ignore_index, const std::string& reduction) {
  return std::get<0>(cosine_cross_entropy_forward(features, prototypes, target, scale, ignore_index, reduction));
}

std::tuple<Tensor, Tensor> cosine_cross_entropy_backward(const Tensor& gradient, const Tensor& features,
                                                         const Tensor& prototypes, const Tensor& target,
                                                         const Tensor& cosine, const Tensor& inverse_norm, double scale,
                                                         int64_t ignore_index, const std::string& reduction,
                                                         bool needs_features, bool needs_prototypes) {
  check_cosine_backward(kOp, features, prototypes, cosine, inverse_norm);
  check_target(kOp, features, target);
  const Divisor kind = loss_divisor(kOp, reduction);
  check_sizes(kOp, "gradient", gradient, features,
              kind == Divisor::task ? std::vector<int64_t>{features.size(0)} : std::vector<int64_t>{});
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_gradient = plain(gradient, accumulator);
  const Tensor plain_prototypes = plain(prototypes, accumulator);
  const Tensor plain_target = as_contiguous(target);
  const int64_t K = prototypes.size(1);
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  Tensor d_prototypes = make(features, {needs_prototypes ? map.batch : 0, K, map.channels}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const UnitPrototypes<A> unit(data<A>(plain_prototypes), map.batch * K, map.channels);
    auto d_cosine =
        pull_down<A>(map, data<A>(cosine), data<A>(plain_gradient), plain_target, K, scale, ignore_index, kind);
    cosines_backward<S>(map, unit, K, data<A>(inverse_norm), data<A>(cosine), d_cosine.data(),
                        needs_features ? mutable_data<S>(d_features) : nullptr,
                        needs_prototypes ? mutable_data<A>(d_prototypes) : nullptr);
  });
  return {d_features, d_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("cosine_cross_entropy", TORCH_BOX(&cosine_cross_entropy));
  m.impl("_cosine_cross_entropy_forward", TORCH_BOX(&cosine_cross_entropy_forward));
  m.impl("_cosine_cross_entropy_backward", TORCH_BOX(&cosine_cross_entropy_backward));
}

}  // namespace fewseg
