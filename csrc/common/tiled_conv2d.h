// What tiled_conv2d does alike on every device: its checks, its sizes, and the calls of torch's own convolution for the
// features' part.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "backward_arguments.h"
#include "tap_axis.h"

namespace fewseg {

// Sizes of a call, by the letters of csrc/ops/tiled_conv2d.cpp; h x w is the result's grid.
struct TiledConv2dSizes {
  int64_t B, L, C, D, O, H, W, h, w;
  TapAxis rows, columns;

  int64_t taps() const { return rows.taps * columns.taps; }
  int64_t samples() const { return B * L; }
};

inline TiledConv2dSizes check_tiled_conv2d(const char* op, const Tensor& features, const Tensor& z,
                                           const Tensor& weight, const std::optional<Tensor>& bias,
                                           const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  check_features(op, features);
  check(z.dim() == 3, op, "z must be [B,L,D], got ", z.dim(), " dimensions");
  check(weight.dim() == 4, op, "weight must be [O,C+D,kh,kw], got ", weight.dim(), " dimensions");
  check(z.size(0) == features.size(0), op, "features has ", features.size(0), " tasks and z ", z.size(0));
  check(z.size(1) >= 1 && z.size(2) >= 1, op, "z must hold at least one sample and one channel");
  check(weight.size(0) >= 1 && weight.size(2) >= 1 && weight.size(3) >= 1, op, "weight must not be empty");
  check(weight.size(1) == features.size(1) + z.size(2), op, "weight has ", weight.size(1),
        " input channels, features and z together ", features.size(1) + z.size(2));
  check(on_same_device(features, z) && on_same_device(features, weight), op, "arguments must be on one device");
  check_dtype_beside(op, "z", features, z);
  check_dtype_beside(op, "weight", features, weight);
  if (bias) {
    check(bias->dim() == 1 && bias->size(0) == weight.size(0), op, "bias must be [O]");
    check(on_same_device(features, *bias), op, "bias must be on the device of features");
    check_dtype_beside(op, "bias", features, *bias);
  }
  // Beyond 2^31 the size of the result might overflow, and no memory holds it.
  const auto within = [](const std::vector<int64_t>& pair, int64_t least) {
    return pair.size() == 2 && std::min(pair[0], pair[1]) >= least && std::max(pair[0], pair[1]) <= int64_t(1) << 31;
  };
  check(within(padding, 0), op, "padding must be two numbers of 0 to 2^31");
  check(within(dilation, 1), op, "dilation must be two numbers of 1 to 2^31");
  const TapAxis rows{features.size(2), weight.size(2), padding[0], dilation[0]};
  const TapAxis columns{features.size(3), weight.size(3), padding[1], dilation[1]};
  check(rows.outputs() >= 1 && columns.outputs() >= 1, op, "the kernel is larger than the padded features");
  return {features.size(0), z.size(1),      features.size(1),  z.size(2), weight.size(0), features.size(2),
          features.size(3), rows.outputs(), columns.outputs(), rows,      columns};
}

// The result's dtype, which is also the convolution's.
inline ScalarType tiled_conv2d_type(const Tensor& features, const Tensor& z, const Tensor& weight,
                                    const std::optional<Tensor>& bias) {
  const ScalarType type = features.scalar_type();
  const bool alike = z.scalar_type() == type && weight.scalar_type() == type && (!bias || bias->scalar_type() == type);
  return alike ? type : accumulator_type(type);
}

// Headers after torch 2.10's pass on torch's own message.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define FEWSEG_ERROR_CODE_CHECK STABLE_TORCH_ERROR_CODE_CHECK
#else
#define FEWSEG_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// torch::stable::permute, which torch 2.10's headers do not have.
inline Tensor permuted(const Tensor& tensor, const std::array<int64_t, 4>& dims) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(tensor), from(torch::headeronly::IntHeaderOnlyArrayRef(dims))};
  FEWSEG_ERROR_CODE_CHECK(torch_call_dispatcher("aten::permute", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The same values, NCHW or channels-last.
inline Tensor in_layout(const Tensor& tensor, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::contiguous(tensor, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// A new [N,O,h,w] in either layout.
inline Tensor make_map(const Tensor& like, int64_t N, const TiledConv2dSizes& sizes, ScalarType type,
                       bool channels_last) {
  if (!channels_last) return make(like, {N, sizes.O, sizes.h, sizes.w}, type);
  return permuted(make(like, {N, sizes.h, sizes.w, sizes.O}, type), {0, 3, 1, 2});
}

// The weight's last D channels, tap by tap: [O][kh][kw][D].
inline Tensor taps_of_z(const Tensor& weight, const TiledConv2dSizes& sizes, ScalarType type) {
  Tensor all = weight;
  const Tensor last = torch::stable::narrow(all, 1, sizes.C, sizes.D);
  return with_dtype(torch::stable::contiguous(permuted(last, {0, 2, 3, 1})), type);
}

inline Tensor weight_of_features(const Tensor& weight, const TiledConv2dSizes& sizes, ScalarType type) {
  Tensor all = weight;
  return with_dtype(torch::stable::contiguous(torch::stable::narrow(all, 1, 0, sizes.C)), type);
}

// aten::convolution of the features and the first C channels of the weight: [B,O,h,w], in the layout asked for.
inline Tensor convolve(const Tensor& features, const Tensor& weight, const TiledConv2dSizes& sizes, ScalarType type,
                       bool channels_last) {
  using torch::stable::detail::from;
  if (sizes.B == 0) return make(features, {0, sizes.O, sizes.h, sizes.w}, type);
  const std::array<int64_t, 2> padding{sizes.rows.padding, sizes.columns.padding}, one{1, 1}, none{0, 0};
  const std::array<int64_t, 2> dilation{sizes.rows.dilation, sizes.columns.dilation};
  using List = torch::headeronly::IntHeaderOnlyArrayRef;
  std::array<StableIValue, 9> stack{from(with_dtype(features, type)),
                                    from(weight_of_features(weight, sizes, type)),
                                    from(std::nullopt),
                                    from(List(one)),
                                    from(List(padding)),
                                    from(List(dilation)),
                                    from(false),
                                    from(List(none)),
                                    from(int64_t(1))};
  FEWSEG_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return in_layout(torch::stable::detail::to<Tensor>(stack[0]), channels_last);
}

// Its backward, from d_base [B,O,h,w]: d_features and the gradient of the weight's first C channels; the one that is
// not needed comes back undefined.
inline std::tuple<Tensor, Tensor> convolve_backward(const Tensor& d_base, const Tensor& features, const Tensor& weight,
                                                    const TiledConv2dSizes& sizes, bool needs_features,
                                                    bool needs_weight) {
  using torch::stable::detail::from;
  const ScalarType type = d_base.scalar_type();
  const std::array<int64_t, 2> padding{sizes.rows.padding, sizes.columns.padding}, one{1, 1}, none{0, 0};
  const std::array<int64_t, 2> dilation{sizes.rows.dilation, sizes.columns.dilation};
  const std::array<bool, 3> needed{needs_features, needs_weight, false};
  using List = torch::headeronly::IntHeaderOnlyArrayRef;
  std::array<StableIValue, 11> stack{from(d_base),
                                     from(with_dtype(features, type)),
                                     from(weight_of_features(weight, sizes, type)),
                                     from(std::nullopt),
                                     from(List(one)),
                                     from(List(padding)),
                                     from(List(dilation)),
                                     from(false),
                                     from(List(none)),
                                     from(int64_t(1)),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(needed))};
  FEWSEG_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor d_features = torch::stable::detail::to<Tensor>(stack[0]);
  const Tensor d_weight = torch::stable::detail::to<Tensor>(stack[1]);
  torch::stable::detail::to<Tensor>(stack[2]);  // the bias's, undefined: taken over to be released
  return {d_features, d_weight};
}

// The two parts of the weight's gradient, put together: `of_features` [O,C,kh,kw] (undefined for an empty batch) and
// `of_z` [O,kh,kw,D].
inline Tensor join_weight(const Tensor& weight, const TiledConv2dSizes& sizes, const Tensor& of_features,
                          const Tensor& of_z) {
  const std::vector<int64_t> all{sizes.O, sizes.C + sizes.D, sizes.rows.taps, sizes.columns.taps};
  Tensor result = torch::stable::new_zeros(weight, all);
  if (sizes.B == 0) return result;
  Tensor first = torch::stable::narrow(result, 1, 0, sizes.C),
         last = torch::stable::narrow(result, 1, sizes.C, sizes.D);
  torch::stable::copy_(first, of_features);
  torch::stable::copy_(last, permuted(of_z, {0, 3, 1, 2}));
  return result;
}

}  // namespace fewseg
