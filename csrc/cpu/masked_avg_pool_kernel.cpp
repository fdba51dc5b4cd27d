// CPU kernels of fewseg::masked_avg_pool: arguments, threads and the choice of instruction set. What the numbers mean
// is in csrc/ops/masked_avg_pool.cpp, the inner loops are in masked_avg_pool_kernel.inl.
#include <algorithm>
#include <tuple>

#include "../common/backward_arguments.h"
#include "../common/bilinear.h"

#include "instruction_set.h"
#include "parallel.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::masked_avg_pool";

// The linear map from the masks' grid to the features' (see ops/masked_avg_pool.cpp), or its adjoint.
template <class A>
BilinearResize<A> mask_to_features(const std::string& resize, int64_t h, int64_t w, int64_t H, int64_t W,
                                   bool adjoint) {
  if (pools_by_adjoint(kOp, resize)) return BilinearResize<A>(H, W, h, w, !adjoint);
  return BilinearResize<A>(h, w, H, W, adjoint);
}

// Runs the map over [planes, h, w] -> [planes, H, W], row by row.
template <class In, class A, class Row>
void resize_planes(const BilinearResize<A>& map, const In* input, int64_t planes, A* output, Row row_body) {
  const Bands<A> rows = map.rows.bands(), columns = map.columns.bands();
  const int64_t input_size = rows.inputs * columns.inputs;
  parallel(planes * rows.outputs, planes * input_size, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch(columns.inputs);
    for (int64_t i = begin; i < end; ++i)
      row_body(input + i / rows.outputs * input_size, rows, columns, i % rows.outputs, scratch.data(),
               output + i * columns.outputs);
  });
}

template <class S>
void forward(const FeatureMap& features, const Tensor& masks, double eps, const std::string& resize, Tensor& prototypes,
             Tensor& weights, Tensor& inverse_mass) {
  using A = Accumulator<S>;
  const auto& body = kernel_table().masked_avg_pool.of(S{});
  const int64_t classes = masks.size(1), planes = features.batch * classes, N = features.pixels;
  const auto map =
      mask_to_features<A>(resize, masks.size(2), masks.size(3), features.height, features.width, /*adjoint=*/false);

  A* weight = mutable_data<A>(weights);
  if (masks.scalar_type() == ScalarType::Bool)
    resize_planes(map, data<bool>(masks), planes, weight, body.resize_bool_row);
  else
    resize_planes(map, data<A>(masks), planes, weight, body.resize_mask_row);

  A* inverse = mutable_data<A>(inverse_mass);
  for (int64_t plane = 0; plane < planes; ++plane) {
    // Bilinear weights of a pixel sum to one, so this is also the sum over the mask at its own resolution.
    double mass = eps;
    A* w = weight + plane * N;
    for (int64_t x = 0; x < N; ++x) mass += double(w[x]);
    inverse[plane] = mass != 0 ? A(1 / mass) : A(0);
    // Divided: of a mass beyond 1e38 the reciprocal in float32 has few digits left.
    for (int64_t x = 0; x < N; ++x) w[x] = mass != 0 ? A(double(w[x]) / mass) : A(0);
  }

  const int64_t unit = body.pool_unit, units = (features.channels + unit - 1) / unit;
  const S* f = data<S>(features.tensor);
  A* p = mutable_data<A>(prototypes);
  parallel(features.batch * units, planes * features.task_size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / units, first = i % units * unit;
      body.pool(
          {f + task * features.task_size(), features.channels, N, features.channel_stride(), features.pixel_stride()},
          weight + task * classes * N, classes, first, std::min(first + unit, features.channels),
          p + task * classes * features.channels);
    }
  });
}

template <class S>
void backward_features(const Accumulator<S>* gradient, const Accumulator<S>* weights, int64_t classes,
                       const FeatureMap& features, Tensor& d_features) {
  const auto& body = kernel_table().masked_avg_pool.of(S{});
  const int64_t rows = features.channels_last ? features.pixels : features.channels;
  S* out = mutable_data<S>(d_features);
  parallel(features.batch * rows, features.batch * classes * features.task_size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t task = i / rows, first = i % rows, last = std::min(rows, first + end - i);
      body.spread(weights + task * classes * features.pixels, gradient + task * classes * features.channels, classes,
                  {nullptr, features.channels, features.pixels, features.channel_stride(), features.pixel_stride()},
                  first, last, out + task * features.task_size());
      i += last - first;
    }
  });
}

template <class S>
void backward_masks(const Accumulator<S>* gradient, const Accumulator<S>* weights, const Accumulator<S>* inverse_mass,
                    int64_t classes, const FeatureMap& features, const std::string& resize, Tensor& d_masks) {
  using A = Accumulator<S>;
  const auto& body = kernel_table().masked_avg_pool.of(S{});
  const int64_t N = features.pixels, planes = features.batch * classes;
  const S* f = data<S>(features.tensor);
  std::vector<A> d_weights(planes * N);

  constexpr int64_t kUnit = 64;
  const int64_t units = (N + kUnit - 1) / kUnit;
  parallel(features.batch * units, planes * features.task_size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / units, first = i % units * kUnit;
      body.project(
          {f + task * features.task_size(), features.channels, N, features.channel_stride(), features.pixel_stride()},
          gradient + task * classes * features.channels, classes, first, std::min(first + kUnit, N),
          d_weights.data() + task * classes * N);
    }
  });
  for (int64_t plane = 0; plane < planes; ++plane) {
    A* d = d_weights.data() + plane * N;
    double along = 0;  // dP . P, the part that the denominator takes back
    for (int64_t x = 0; x < N; ++x) along += double(weights[plane * N + x]) * double(d[x]);
    for (int64_t x = 0; x < N; ++x) d[x] = A(double(d[x]) - along) * inverse_mass[plane];
  }
  const auto map = mask_to_features<A>(resize, d_masks.size(2), d_masks.size(3), features.height, features.width,
                                       /*adjoint=*/true);
  resize_planes(map, static_cast<const A*>(d_weights.data()), planes, mutable_data<A>(d_masks), body.resize_mask_row);
}

std::tuple<Tensor, Tensor, Tensor> masked_avg_pool_forward(const Tensor& features, const Tensor& masks, double eps,
                                                           const std::string& resize) {
  check_features(kOp, features);
  check_masks(kOp, features, masks);
  check_finite(kOp, "eps", eps);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor plain_masks =
      as_contiguous(masks.scalar_type() == ScalarType::Bool ? masks : with_dtype(masks, accumulator));
  const int64_t classes = masks.size(1);

  Tensor prototypes = make(features, {map.batch, classes, map.channels}, accumulator);
  Tensor weights = make(features, {map.batch, classes, map.pixels}, accumulator);
  Tensor inverse_mass = make(features, {map.batch, classes}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    forward<decltype(storage)>(map, plain_masks, eps, resize, prototypes, weights, inverse_mass);
  });
  return {with_dtype(prototypes, result_type(features, masks)), weights, inverse_mass};
}

Tensor masked_avg_pool(const Tensor& features, const Tensor& masks, double eps, const std::string& resize) {
  return std::get<0>(masked_avg_pool_forward(features, masks, eps, resize));
}

std::tuple<Tensor, Tensor> masked_avg_pool_backward(const Tensor& gradient, const Tensor& features,
                                                    const Tensor& weights, const Tensor& inverse_mass, int64_t mask_h,
                                                    int64_t mask_w, const std::string& resize, bool needs_features,
                                                    bool needs_masks) {
  check_masked_avg_pool_backward(kOp, gradient, features, weights, inverse_mass, mask_h, mask_w);
  const FeatureMap map(features);
  const int64_t classes = weights.size(1);
  const ScalarType type = features.scalar_type(), accumulator = accumulator_type(type);
  const Tensor plain_gradient = plain(gradient, accumulator);
  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, type);
  Tensor d_masks = make(features, {needs_masks ? map.batch : 0, classes, mask_h, mask_w}, accumulator);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    if (needs_features) backward_features<S>(data<A>(plain_gradient), data<A>(weights), classes, map, d_features);
    if (needs_masks)
      backward_masks<S>(data<A>(plain_gradient), data<A>(weights), data<A>(inverse_mass), classes, map, resize,
                        d_masks);
  });
  return {d_features, d_masks};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("masked_avg_pool", TORCH_BOX(&masked_avg_pool));
  m.impl("_masked_avg_pool_forward", TORCH_BOX(&masked_avg_pool_forward));
  m.impl("_masked_avg_pool_backward", TORCH_BOX(&masked_avg_pool_backward));
}

}  // namespace fewseg
