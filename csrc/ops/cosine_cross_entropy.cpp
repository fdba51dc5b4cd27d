// fewseg::cosine_cross_entropy: cross-entropy of softmax(upsampled scale * cosines) against a target that may have
// another grid than the features (docs/math.md, section 2). No tensor of K x h x w is ever built.
//
//   features   [B,C,H,W]  float32, float64, bfloat16 or float16; NCHW or channels-last
//   prototypes [B,K,C]    float32 (float64 with float64 features) or the features' dtype
//   target     [B,h,w]    int64, int32 or uint8; labels 0..K-1, others only ignore_index
//   result     scalar, or [B] for reduction "per_task"; promote_types(features, prototypes)
//
// "mean" divides by the valid pixels of the whole batch, "per_task" each task's loss by its own (both by at least 1),
// "sum" by nothing. The raw forward keeps what the backward needs, in the accumulator type: cosine [B,K,H*W] and
// inverse_norm [B,H*W] (1/|feature|).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def(
      "cosine_cross_entropy(Tensor features, Tensor prototypes, Tensor target, float scale=20.0, int ignore_index=255,"
      " str reduction=\"mean\") -> Tensor");
  m.def(
      "_cosine_cross_entropy_forward(Tensor features, Tensor prototypes, Tensor target, float scale, int ignore_index,"
      " str reduction) -> (Tensor loss, Tensor cosine, Tensor inverse_norm)");
  m.def(
      "_cosine_cross_entropy_backward(Tensor gradient, Tensor features, Tensor prototypes, Tensor target, Tensor "
      "cosine,"
      " Tensor inverse_norm, float scale, int ignore_index, str reduction, bool needs_features, bool needs_prototypes)"
      " -> (Tensor d_features, Tensor d_prototypes)");
}
