// GPU side of fewseg::tiled_conv2d. What the numbers mean is in csrc/ops/tiled_conv2d.cpp.
#include <tuple>

#include "../common/tiled_conv2d.h"
#include "cosine_host.h"
#include "tiled_conv2d.cuh"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::tiled_conv2d";

TiledGrid grid_of(const TiledConv2dSizes& sizes) {
  return {sizes.rows,
          sizes.columns,
          sizes.samples(),
          sizes.L,
          sizes.O,
          sizes.h,
          sizes.w,
          int(sizes.rows.classes()),
          int(sizes.columns.classes())};
}

// The weight's taps of z [O][kh][kw][D] as one channels-last map of O kh kw pixels: what features.cuh multiplies with.
FeatureMap as_map(const Tensor& z_taps, const TiledConv2dSizes& sizes) {
  const Tensor pixels = torch::stable::view(z_taps, {1, 1, sizes.O * sizes.taps(), sizes.D});
  return FeatureMap(permuted(pixels, {0, 3, 1, 2}));
}

Tensor tiled_conv2d(const Tensor& features, const Tensor& z, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  const TiledConv2dSizes sizes = check_tiled_conv2d(kOp, features, z, weight, bias, padding, dilation);
  const OnDevice device(features);
  const ScalarType type = tiled_conv2d_type(features, z, weight, bias), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor base = convolve(map.tensor, weight, sizes, type, map.channels_last);
  const Tensor z_taps = taps_of_z(weight, sizes, accumulator), plain_z = plain(z, accumulator);
  const Tensor plain_bias = bias ? plain(*bias, accumulator) : plain_z;
  const TiledGrid grid = grid_of(sizes);
  const int64_t entries = sizes.samples() * grid.row_classes * grid.column_classes;
  const Tensor by_tap = make(features, {sizes.samples(), sizes.O, sizes.taps()}, accumulator);
  const Tensor table = make(features, {entries, sizes.O}, accumulator);
  Tensor result = make_map(features, sizes.samples(), sizes, type, map.channels_last);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    if (sizes.B == 0) return;
    run_cosines<A>(device, as_map(z_taps, sizes), data<A>(plain_z), sizes.samples(), nullptr, mutable_data<A>(by_tap));
    run(device, z_table_kernel<A>, plan_elements(entries * sizes.O), grid, data<A>(by_tap),
        bias ? data<A>(plain_bias) : nullptr, mutable_data<A>(table));
    const LaunchPlan plan = plan_add_table(sizes.samples(), sizes.O, sizes.h, sizes.w);
    const auto kernel = map.channels_last ? add_table_kernel<true, S, A> : add_table_kernel<false, S, A>;
    run(device, kernel, plan, grid, data<S>(base), data<A>(table), mutable_data<S>(result));
  });
  return torch::stable::view(result, {sizes.B, sizes.L, sizes.O, sizes.h, sizes.w});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tiled_conv2d_backward(const Tensor& gradient, const Tensor& features,
                                                                 const Tensor& z, const Tensor& weight,
                                                                 const std::vector<int64_t>& padding,
                                                                 const std::vector<int64_t>& dilation,
                                                                 bool needs_features, bool needs_z, bool needs_weight,
                                                                 bool needs_bias) {
  const TiledConv2dSizes sizes = check_tiled_conv2d(kOp, features, z, weight, std::nullopt, padding, dilation);
  check_sizes(kOp, "gradient", gradient, features, {sizes.B, sizes.L, sizes.O, sizes.h, sizes.w});
  const OnDevice device(features);
  const ScalarType type = gradient.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const FeatureMap d_result(torch::stable::reshape(gradient, {sizes.samples(), sizes.O, sizes.h, sizes.w}));
  const Tensor z_taps = taps_of_z(weight, sizes, accumulator), plain_z = plain(z, accumulator);
  const TiledGrid grid = grid_of(sizes);
  const int64_t entries = sizes.samples() * grid.row_classes * grid.column_classes;
  const int64_t volume = sizes.O * sizes.h * sizes.w;

  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, features.scalar_type());
  Tensor d_z = make(features, {needs_z ? sizes.B : 0, sizes.L, sizes.D}, accumulator);
  Tensor d_weight = make(features, {0}, weight.scalar_type());
  Tensor d_bias = torch::stable::new_zeros(features, std::vector<int64_t>{needs_bias ? sizes.O : 0}, accumulator);
  Tensor d_taps = make(features, {sizes.O, sizes.rows.taps, sizes.columns.taps, sizes.D}, accumulator);
  Tensor d_base = make_map(features, sizes.B, sizes, type, d_result.channels_last);
  const Tensor sums = make(features, {entries, sizes.O}, accumulator);
  const Tensor by_tap = make(features, {sizes.samples(), sizes.O, sizes.taps()}, accumulator);
  dispatch_floating(type, kOp, "gradient", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const S* g = data<S>(d_result.tensor);
    if (sizes.B == 0) return;
    if (needs_z || needs_weight || needs_bias) {
      const auto kernel = d_result.channels_last ? sum_classes_kernel<true, S, A> : sum_classes_kernel<false, S, A>;
      run(device, kernel, plan_sum_classes<A>(entries, sizes.O, d_result.channels_last), grid, g,
          mutable_data<A>(sums));
    }
    if (needs_z || needs_weight)
      run(device, sum_taps_kernel<A>, plan_elements(sizes.samples() * sizes.O * sizes.taps()), grid, data<A>(sums),
          mutable_data<A>(by_tap));
    if (needs_z) run_pool<A>(device, as_map(z_taps, sizes), data<A>(by_tap), sizes.samples(), mutable_data<A>(d_z));
    if (needs_weight)
      run_combine<A>(device, as_map(d_taps, sizes), data<A>(by_tap), data<A>(plain_z), sizes.samples(), nullptr,
                     mutable_data<A>(d_taps));
    if (needs_bias)
      run(device, bias_gradient_kernel<A>, plan_elements(sizes.O), grid, data<A>(sums), mutable_data<A>(d_bias));
    if (needs_features || needs_weight)
      run(device, sum_samples_kernel<S, A>, plan_elements(sizes.B * volume), g, sizes.B, sizes.L, volume,
          mutable_data<S>(d_base));
  });
  if (sizes.B > 0 && (needs_features || needs_weight)) {
    const auto [of_features, of_weight] =
        convolve_backward(d_base, map.tensor, weight, sizes, needs_features, needs_weight);
    if (needs_features) d_features = in_layout(with_dtype(of_features, features.scalar_type()), map.channels_last);
    if (needs_weight) d_weight = join_weight(weight, sizes, of_weight, d_taps);
  } else if (needs_weight) {
    d_weight = join_weight(weight, sizes, d_taps, d_taps);
  }
  return {d_features, d_z, d_weight, d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, FEWSEG_DISPATCH_KEY, m) {
  m.impl("tiled_conv2d", TORCH_BOX(&tiled_conv2d));
  m.impl("_tiled_conv2d_backward", TORCH_BOX(&tiled_conv2d_backward));
}

}  // namespace fewseg
