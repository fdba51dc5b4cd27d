// fewseg::masked_avg_pool: prototypes[b,k] = average of the features of task b under mask k (docs/math.md, section 1).
//
//   features [B,C,H,W]  float32, float64, bfloat16 or float16; NCHW or channels-last
//   masks    [B,K,h,w]  bool, float32 (float64 with float64 features) or the features' dtype
//   result   [B,K,C]    promote_types(features, masks)
//
// With the weights W_k at the features' grid, P_k = sum_x W_k(x) F(x) / (sum_x W_k(x) + eps), where W_k is
//   resize = "features": the adjoint of bilinear upsampling applied to the mask: exactly what pooling the upsampled
//                        features under the mask gives, without the upsampled features;
//   resize = "masks":    the mask resized to the features' grid.
//
// The raw forward also returns what the backward needs: weights [B,K,H*W] (W_k / (sum W_k + eps)) and inverse_mass
// [B,K] (1 / (sum W_k + eps)), both in the accumulator type. The backward gives
//   dF(x) = sum_k weights_k(x) dP_k,   dM_k = adjoint of the map above applied to (F . dP_k - dP_k . P_k) inverse_mass,
// an empty tensor for whichever is not needed.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def("masked_avg_pool(Tensor features, Tensor masks, float eps=1e-5, str resize=\"features\") -> Tensor");
  m.def(
      "_masked_avg_pool_forward(Tensor features, Tensor masks, float eps, str resize)"
      " -> (Tensor prototypes, Tensor weights, Tensor inverse_mass)");
  m.def(
      "_masked_avg_pool_backward(Tensor gradient, Tensor features, Tensor weights, Tensor inverse_mass,"
      " SymInt mask_h, SymInt mask_w, str resize, bool needs_features, bool needs_masks)"
      " -> (Tensor d_features, Tensor d_masks)");
}
