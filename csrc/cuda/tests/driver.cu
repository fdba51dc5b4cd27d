// Launches every kernel once on small odd shapes, without torch: what compute-sanitizer watches on a GPU, and a program
// that the emulator runs too. Prints one checksum per kernel; sums of the same run twice must have the same bits.
#include "../cosine.cuh"
#include "../cosine_cross_entropy.cuh"
#include "../features.cuh"
#include "../gaussian_launch.h"
#include "../labels.cuh"
#include "../masked_avg_pool.cuh"
#include "../monte_carlo.cuh"
#include "../resize.cuh"
#include "../sample_prototypes.cuh"
#include "../tiled_conv2d.cuh"
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
           static_cast<A*>(weights), int(K), static_cast<A*>(sums), nullptr, nullptr, nullptr);
  });
  twice("pool with its map", out, [&] {
    launch(pool_kernel<kChannelsLast, kManyClasses, A, A>, plan_pool<A>(B, C, kChannelsLast, kManyClasses), stream, f,
           static_cast<A*>(weights), int(K), static_cast<A*>(sums), static_cast<A*>(vectors), static_cast<A*>(own),
           static_cast<A*>(out));
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

// 2 tasks of 4 shots, 5 samples.
void run_gaussians() {
  constexpr int64_t S = 4, L = 5;
  const Array<A> mean(B * S * C, 13), variance(B * S * C, 14), gradient(B * L * C, 15);
  const Array<A> one_mean(B * C), one_variance(B * C), z(B * L * C), d_mean(B * S * C), d_variance(B * S * C);
  const Array<int64_t> key(2, 16);
  const Stream stream = nullptr;
  const DeviceShots<A> shots{mean, variance, B, S, C};
  twice("gaussian_aggregate", one_mean, [&] {
    launch(gaussian_aggregate_kernel<A>, plan_elements(B * C), stream, shots, Weighting(), static_cast<A*>(one_mean),
           static_cast<A*>(one_variance));
  });
  twice("gaussian_aggregate_backward", d_variance, [&] {
    launch(gaussian_aggregate_backward_kernel<A>, plan_elements(B * C), stream, shots, Weighting(),
           static_cast<A*>(one_mean), static_cast<A*>(one_variance), static_cast<A*>(d_mean),
           static_cast<A*>(d_variance));
  });
  const DeviceGaussians<A> gaussians{one_mean, one_variance, B, C};
  twice("gaussian_sample", z, [&] {
    launch(gaussian_sample_kernel<DeviceGaussians<A>, A>, plan_noise(B, L, C), stream, gaussians, L,
           static_cast<int64_t*>(key), static_cast<A*>(z));
  });
  const DeviceAggregate<A> aggregated(shots);
  const ShotsGradient<A> to_shots{shots, d_mean, d_variance};
  twice("sample_prototypes", z, [&] {
    launch(gaussian_sample_kernel<DeviceAggregate<A>, A>, plan_noise(B, L, C), stream, aggregated, L,
           static_cast<int64_t*>(key), static_cast<A*>(z));
  });
  twice("sample_prototypes_backward", d_variance, [&] {
    launch(gaussian_sample_backward_kernel<DeviceAggregate<A>, ShotsGradient<A>, A>, plan_noise(B, 1, C), stream,
           aggregated, L, static_cast<int64_t*>(key), static_cast<A*>(gradient), to_shots);
  });
}

void run_samples() {
  constexpr int64_t L = 3;
  const Array<A> logits(B * L * K * N, 17), gradient(B * K * h * w, 18), probabilities(B * K * h * w);
  const Array<A> variance(B * K * h * w), entropy(B * h * w), information(B * h * w), pulled(B * L * K * H * w);
  const Stream stream = nullptr;
  const SampleLogits<A> in{logits, int(L), int(K), B, H, W, h, w};
  twice("average_samples", information, [&] {
    launch(average_samples_kernel<2, A>, plan_elements(B * h * w), stream, in, static_cast<A*>(probabilities),
           static_cast<A*>(variance), static_cast<A*>(entropy), static_cast<A*>(information));
  });
  twice("average_gradient", pulled, [&] {
    launch(average_gradient_kernel<A>, plan_elements(B * L * H * w), stream, in, static_cast<A*>(gradient),
           static_cast<A*>(pulled));
  });
}

// C output channels, a 3 x 5 kernel with dilation 2 along x, 3 samples of 2 tasks.
template <bool kChannelsLast>
void run_tiled() {
  constexpr int64_t L = 3, kTaps = 15;
  const TapAxis rows{H, 3, 1, 1}, columns{W, 5, 4, 2};
  const TiledGrid grid{rows, columns, B * L, L, C, H, W, int(rows.classes()), int(columns.classes())};
  const int64_t entries = B * L * grid.row_classes * grid.column_classes;
  const Array<A> by_tap(B * L * C * kTaps, 19), bias(C, 20), base(B * C * N, 21), table(entries * C);
  const Array<A> result(B * L * C * N), d_base(B * C * N), sums(entries * C), d_taps(B * L * C * kTaps), d_bias(C);
  const Stream stream = nullptr;
  twice("z_table", table, [&] {
    launch(z_table_kernel<A>, plan_elements(entries * C), stream, grid, static_cast<A*>(by_tap), static_cast<A*>(bias),
           static_cast<A*>(table));
  });
  twice("add_table", result, [&] {
    launch(add_table_kernel<kChannelsLast, A, A>, plan_add_table(B * L, C, H, W), stream, grid, static_cast<A*>(base),
           static_cast<A*>(table), static_cast<A*>(result));
  });
  twice("sum_samples", d_base, [&] {
    launch(sum_samples_kernel<A, A>, plan_elements(B * C * N), stream, static_cast<A*>(result), B, L, C * N,
           static_cast<A*>(d_base));
  });
  twice("sum_classes", sums, [&] {
    launch(sum_classes_kernel<kChannelsLast, A, A>, plan_sum_classes<A>(entries, C, kChannelsLast), stream, grid,
           static_cast<A*>(result), static_cast<A*>(sums));
  });
  twice("sum_taps", d_taps, [&] {
    launch(sum_taps_kernel<A>, plan_elements(B * L * C * kTaps), stream, grid, static_cast<A*>(sums),
           static_cast<A*>(d_taps));
  });
  twice("bias_gradient", d_bias, [&] {
    launch(bias_gradient_kernel<A>, plan_elements(C), stream, grid, static_cast<A*>(sums), static_cast<A*>(d_bias));
  });
}

}  // namespace

int main() {
  run_layout<false>();
  run_layout<true>();
  run_planes();
  run_gaussians();
  run_samples();
  run_tiled<false>();
  run_tiled<true>();
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
