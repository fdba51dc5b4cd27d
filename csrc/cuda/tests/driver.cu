// Launches every kernel once on small odd shapes, without torch: what compute-sanitizer watches on a GPU, and a program
// that the emulator runs too. Prints one checksum per kernel; sums of the same run twice must have the same bits.
#include "../cosine.cuh"
#include "../cosine_cross_entropy.cuh"
#include "../features.cuh"
#include "../labels.cuh"
#include "../masked_avg_pool.cuh"
#include "../resize.cuh"
#include "arrays.h"
#include "inner_opt_cases.h"

namespace {

using namespace driver;
using A = float;

// Sizes around the tiles: 2 tasks, 3 classes, 37 channels, 7 x 9 pixels (2 tiles, the second not full), 20 x 17
// targets.
constexpr int64_t B = 2, K = 3, C = 37, H = 7, W = 9, N = H * W, h = 20, w = 17;

template <bool kChannelsLast>
void run_layout() {
  const Array<A> features(B * C * N, 1), vectors(B * K * C, 2), weights(B * K * N, 3);
  const Features<A> f{features, C, N, kChannelsLast ? 1 : N, kChannelsLast ? C : 1};
  const Array<A> inverse_norm(B * N), cosine(B * K * N), sums(B * K * C), out(B * C * N), own(B * N, 4);
  const Stream stream = nullptr;
  twice("cosines", cosine, [&] {
    launch(cosines_kernel<kChannelsLast, 2, A, A>, plan_cosines<A>(B, N, 2), stream, f, static_cast<A*>(vectors),
           int(K), static_cast<A*>(inverse_norm), static_cast<A*>(cosine));
  });
  twice("pool", sums, [&] {
    launch(pool_kernel<kChannelsLast, 2, A, A>, plan_pool<A>(B, C, kChannelsLast, 2), stream, f,
           static_cast<A*>(weights), int(K), static_cast<A*>(sums));
  });
  twice("combine", out, [&] {
    launch(combine_kernel<kChannelsLast, A, A>, plan_combine<A>(B, N, C), stream, f, static_cast<A*>(weights),
           static_cast<A*>(vectors), int(K), static_cast<A*>(own), static_cast<A*>(out));
  });
}

void run_planes() {
  const Array<A> masks(B * K * h * w, 6), planes(B * K * N), inverse_mass(B * K), back(B * K * h * w), weight(B, 7);
  const Array<A> gradient(1, 8), cosine(B * K * N, 9), pulled(B * K * H * w), loss(1);
  const Array<double> row_loss(B * h);
  const Array<int32_t> labels(B * h * w, 10, K);
  const Stream stream = nullptr;
  for (const bool adjoint : {false, true})
    twice("resize", planes, [&] {
      launch(resize_kernel<A, A>, plan_elements(B * K * N), stream, static_cast<A*>(masks), B * K, h, w, H, W, adjoint,
             static_cast<A*>(planes));
    });
  twice("normalise_weights", inverse_mass, [&] {
    copy(planes, masks, B * K * N * sizeof(A));
    launch(normalise_weights_kernel<A>, plan_rows<A>(B * K), stream, static_cast<A*>(planes), N, 0.5,
           static_cast<A*>(inverse_mass));
  });
  twice("weights_backward", back, [&] {
    copy(back, masks, B * K * N * sizeof(A));
    launch(weights_backward_kernel<A>, plan_rows<A>(B * K), stream, static_cast<A*>(planes),
           static_cast<A*>(inverse_mass), N, static_cast<A*>(back));
  });
  const UpsampledCosines<A> target{cosine, int(K), H, W, h, w, labels, 20};
  twice("loss", loss, [&] {
    launch(loss_rows_kernel<A>, plan_rows<double>(B * h), stream, target, static_cast<A*>(weight),
           static_cast<double*>(row_loss));
    launch(sum_rows_kernel<A>, plan_rows<double>(1), stream, static_cast<double*>(row_loss), B, h, true,
           static_cast<A*>(loss));
  });
  twice("residual", pulled, [&] {
    launch(residual_kernel<A>, plan_elements(B * H * w), stream, target, B, static_cast<A*>(weight),
           static_cast<A*>(gradient), false, static_cast<A*>(pulled));
  });
  const Array<A> unit(B * K * C), inverse_norm(B * K), sums(B * K * C), vectors(B * K * C, 11);
  const Array<A> d_cosine(B * K * N), own(B * N), norms(B * N, 12);
  twice("unit_prototypes", unit, [&] {
    launch(unit_prototypes_kernel<A>, plan_rows<A>(B * K), stream, static_cast<A*>(vectors), C, static_cast<A*>(unit),
           static_cast<A*>(inverse_norm));
  });
  twice("project_out", sums, [&] {
    copy(sums, vectors, B * K * C * sizeof(A));
    launch(project_out_kernel<A>, plan_rows<A>(B * K), stream, static_cast<A*>(unit), static_cast<A*>(inverse_norm), C,
           static_cast<A*>(sums));
  });
  twice("cosine_gradient", own, [&] {
    launch(cosine_gradient_kernel<A>, plan_elements(B * N), stream, static_cast<A*>(cosine), A(1),
           static_cast<A*>(cosine), static_cast<A*>(norms), B, int(K), N, static_cast<A*>(d_cosine),
           static_cast<A*>(own));
  });
  twice("scale", d_cosine, [&] {
    launch(scale_kernel<A>, plan_elements(B * K * N), stream, static_cast<A*>(cosine), A(20), B * K * N,
           static_cast<A*>(d_cosine));
  });
}

}  // namespace

int main() {
  run_layout<false>();
  run_layout<true>();
  run_planes();
  // Maps that allow loads of 16 bytes and maps that do not, in both layouts; the last chunk is full or not.
  run_inner_opt<float, 1>("float", 2, 37, 39, false, 8, 2);
  run_inner_opt<float, 4>("float", 7, 260, 28, false, 16, 1);
  run_inner_opt<float, 1>("float", 2, 37, 39, true, 24, 1);
  run_inner_opt<float, 4>("float", 3, 36, 40, true, 8, 3);
  run_inner_opt<BFloat16, 1>("bfloat16", 2, 275, 39, false, 32, 1);
  run_inner_opt<BFloat16, 1>("bfloat16", 2, 264, 21, true, 16, 1);
  std::printf("%s\n", failures ? "FAILED" : "ok");
  return failures ? 1 : 0;
}
