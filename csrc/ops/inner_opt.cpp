// fewseg::inner_opt: the inner loop of BiOpt (Eq. 7; docs/math.md, section 3). `steps` steps of gradient descent on the
// prototypes, each along the gradient of CE(softmax(scale * cos(features, prototypes)), target), tasks independent.
//
//   features   [B,C,H,W]  float32, float64, bfloat16 or float16; NCHW or channels-last
//   prototypes [B,K,C]    float32 (float64 with float64 features) or the features' dtype
//   target     [B,H,W]    int64, int32 or uint8; labels 0..K-1, others only ignore_index
//   result     [B,K,C]    promote_types(features, prototypes)
//
// reduction "mean" divides a task's loss by its valid pixels (at least 1), "sum" by nothing. second_order matters only
// to autograd: with false the gradient of the loop is a constant (dPrototypes passes through, dFeatures = 0).
//
// The raw forward keeps what the backward needs, in the accumulator type: the trajectory P^0..P^{T-1} and the sums
// h^0..h^{T-1} [B,T,K,C], and cosine [B,T,K-1,H*W], the differences d_k against class 0. The backward is exact, in
// closed form; d_features is empty where it is not needed.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def(
      "inner_opt(Tensor features, Tensor prototypes, Tensor target, int steps=10, float lr=0.1, float scale=20.0,"
      " int ignore_index=255, str reduction=\"mean\", bool second_order=True) -> Tensor");
  m.def(
      "_inner_opt_forward(Tensor features, Tensor prototypes, Tensor target, int steps, float lr, float scale,"
      " int ignore_index, str reduction) -> (Tensor result, Tensor trajectory, Tensor h, Tensor cosine)");
  m.def(
      "_inner_opt_backward(Tensor gradient, Tensor features, Tensor target, Tensor trajectory, Tensor h, Tensor cosine,"
      " float lr, float scale, int ignore_index, str reduction, bool needs_features)"
      " -> (Tensor d_features, Tensor d_prototypes)");
}
