// fewseg::tiled_conv2d: the convolution of cat(features, tile(z_l)) for L vectors z_l at the cost of one (docs/math.md,
// section 4). Stride 1; any kernel size, padding and dilation.
//
//   features [B,C,H,W]      float32, float64, bfloat16 or float16; NCHW or channels-last
//   z        [B,L,D]        float32 (float64 with float64 features) or the features' dtype, as are weight and bias
//   weight   [O,C+D,kh,kw]  the first C input channels are the features', the last D are z's
//   bias     [O]            or None
//   result   [B,L,O,H',W']  promote_types of them all; each sample in the layout of the features
//
// The features' part is torch's own convolution (aten::convolution, called from the kernels here), once for all
// samples. z is constant over the grid, so its part depends only on which taps of the kernel lie inside: a table of
// [B,L,O, classes of rows, classes of columns] (common/tap_axis.h) is computed from z and the last D channels of the
// weight, and one sweep adds features' part, table and bias. Where the dtypes differ everything is float32.
//
// Backward: the gradient is summed over the samples once for convolution_backward, which gives d_features and the first
// channels of d_weight, and over each class of pixels for d_z, the other channels and d_bias. A gradient that is not
// needed comes back empty. Both repeat bit for bit as far as torch's convolution does.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def(
      "tiled_conv2d(Tensor features, Tensor z, Tensor weight, Tensor? bias=None, SymInt[2] padding=[0, 0],"
      " SymInt[2] dilation=[1, 1]) -> Tensor");
  m.def(
      "_tiled_conv2d_backward(Tensor gradient, Tensor features, Tensor z, Tensor weight, SymInt[2] padding,"
      " SymInt[2] dilation, bool needs_features, bool needs_z, bool needs_weight, bool needs_bias)"
      " -> (Tensor d_features, Tensor d_z, Tensor d_weight, Tensor d_bias)");
}
