// fewseg::cosine_logits: logits[b,k,x] = scale * cos(features[b,:,x], prototypes[b,k,:]) (docs/math.md, section 2).
//
//   features   [B,C,H,W]  float32, float64, bfloat16 or float16; NCHW or channels-last
//   prototypes [B,K,C]    float32 (float64 with float64 features) or the features' dtype
//   result     [B,K,H,W]  promote_types(features, prototypes)
//
// A vector no longer than 1e-12 has cosine 0 with everything and gets no gradient. The raw forward keeps what the
// backward needs, in the accumulator type: cosine [B,K,H*W] and inverse_norm [B,H*W] (1/|feature|).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def("cosine_logits(Tensor features, Tensor prototypes, float scale=20.0) -> Tensor");
  m.def(
      "_cosine_logits_forward(Tensor features, Tensor prototypes, float scale)"
      " -> (Tensor logits, Tensor cosine, Tensor inverse_norm)");
  m.def(
      "_cosine_logits_backward(Tensor gradient, Tensor features, Tensor prototypes, Tensor cosine, Tensor inverse_norm,"
      " float scale, bool needs_features, bool needs_prototypes) -> (Tensor d_features, Tensor d_prototypes)");
}
