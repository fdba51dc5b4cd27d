// fewseg::mc_uncertainty: mc_average, and in the same sweep what the samples disagree about (docs/math.md, section 4).
//
//   logits             [B,L,K,H,W]  float32, float64, bfloat16 or float16
//   size               h, w         of the results; bilinear, align_corners=False; None: H, W
//   probabilities      [B,K,h,w]    as mc_average, bit for bit
//   variance           [B,K,h,w]    of the probability over the L samples (divided by L)
//   entropy            [B,h,w]      of the mean probabilities, in nats
//   mutual_information [B,h,w]      entropy minus the mean of the samples' entropies, at least 0, in nats
//
// All in the dtype of the logits. Only the probabilities have a gradient, the backward is mc_average's.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def(
      "mc_uncertainty(Tensor logits, SymInt[2]? size=None)"
      " -> (Tensor probabilities, Tensor variance, Tensor entropy, Tensor mutual_information)");
  m.def("_mc_uncertainty_backward(Tensor gradient, Tensor logits) -> Tensor");
}
