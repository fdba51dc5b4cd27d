// The inner optimisation on small odd shapes, by the resident kernels and by single steps: the same bits.
#pragma once

#include "../inner_opt_resident.cuh"
#include "../inner_opt_steps.cuh"
#include "../labels.cuh"
#include "arrays.h"

namespace driver {

// Everything that a call of inner_opt keeps or returns, for B tasks.
template <class S, int kHeld>
class InnerOptCase {
  using A = Accumulator<S>;

 public:
  static constexpr int64_t B = 2, T = 3;

  InnerOptCase(int64_t classes, int64_t channels, int64_t pixels, bool channels_last)
      : K(classes),
        C(channels),
        N(pixels),
        f{features, C, N, channels_last ? 1 : N, channels_last ? C : 1},
        descent{20, A(0.05), weight, target, int(K)} {
    launch(convert_labels_kernel<int64_t>,
           LaunchPlan{divide_up(N, kThreads), B, 1, kThreads, SharedBytes().add<int>(32).total()}, nullptr,
           static_cast<int64_t*>(labels), N, K, int64_t(255), static_cast<int32_t*>(target), static_cast<int*>(counts));
    launch(task_weights_kernel<A>, plan_elements(B), nullptr, static_cast<int*>(counts), int(B), 20.0, Divisor::task,
           static_cast<A*>(weight));
  }

  InnerOptPlan plan(bool resident, bool staged, bool backward, int chunk_pixels, int64_t chunks_per_block) const {
    const int64_t chunks = divide_up(N, chunk_pixels);
    InnerOptPlan result{
        resident, staged, chunk_pixels, kHeld, chunks, chunks_per_block, divide_up(chunks, chunks_per_block), B, 0};
    result.shared_bytes = inner_opt_shared_bytes(size(backward), result);
    return result;
  }

  // Forward and back; returns all that came of it.
  template <bool kStaged>
  std::vector<A> single_steps(int chunk_pixels) {
    const Stream stream = nullptr;
    reset();
    LaunchPlan sweep = plan(false, kStaged, false, chunk_pixels, 1).sweep(B);
    const Cut cut{chunk_pixels, 1};
    const int64_t chunks = sweep.grid_x, stride = (T + 1) * K * C;
    const DescentState<A> state{vectors, prototype_norm, norms, parts, sums, arrived};
    launch(chunk_norms_kernel<kStaged, S, A>, sweep, stream, f, state, cut, int(K), false);
    launch(prepare_kernel<A>, plan_prepare<A>(B), stream, state, int(K), C, static_cast<A*>(trajectory), stride,
           static_cast<A*>(nullptr));
    for (int64_t i = 0; i < T; ++i) {
      launch(descend_kernel<kStaged, kHeld, S, A>, sweep, stream, f, state, descent, cut, cosine + i * (K - 1) * N,
             T * (K - 1) * N);
      launch(take_step_kernel<A>, plan_sums(size(false)), stream, state, descent, C, chunks, trajectory + i * K * C,
             trajectory + (i + 1) * K * C, h + i * K * C, stride);
    }
    between();
    sweep = plan(false, kStaged, true, chunk_pixels, 1).sweep(B);
    const int64_t size_back = K * C, stride_back = T * K * C, terms = 2 * (K - 1);
    launch(prepare_kernel<A>, plan_prepare<A>(B), stream, state, int(K), C, before + (T - 1) * size_back, stride_back,
           static_cast<A*>(T % 2 ? v_odd : v_even));
    for (int64_t i = T - 1; i >= 0; --i) {
      const Collected<A> collected{coefficient + i * terms * N, nullptr, own};
      launch(ascend_kernel<kStaged, kHeld, S, A>, sweep, stream, f, state, descent, cut, cosine + i * (K - 1) * N,
             T * (K - 1) * N, T, collected);
      launch(step_back_kernel<A>, plan_sums(size(true)), stream, state, descent, C, chunks, before + i * size_back,
             i > 0 ? before + (i - 1) * size_back : nullptr, h_before + i * size_back, stride_back, T,
             static_cast<A*>(i % 2 ? v_even : v_odd), static_cast<A*>(i % 2 ? v_odd : v_even), basis + i * terms * C);
    }
    return everything();
  }

  std::vector<A> resident(int chunk_pixels, int64_t chunks_per_block) {
    reset();
    const Cut cut{chunk_pixels, int(chunks_per_block)};
    launch(resident_descend_kernel<kHeld, S, A>, plan(true, true, false, chunk_pixels, chunks_per_block).sweep(B),
           nullptr, f, descent, cut, int(T), static_cast<A*>(trajectory), static_cast<A*>(h), static_cast<A*>(cosine),
           static_cast<A*>(parts));
    between();
    launch(resident_ascend_kernel<kHeld, S, A>, plan(true, true, true, chunk_pixels, chunks_per_block).sweep(B),
           nullptr, f, descent, cut, int(T), static_cast<A*>(before), static_cast<A*>(h_before),
           static_cast<A*>(cosine), static_cast<A*>(v_even), static_cast<A*>(v_odd), static_cast<A*>(parts),
           static_cast<A*>(sums), static_cast<A*>(coefficient), static_cast<A*>(basis), static_cast<A*>(own));
    return everything();
  }

 private:
  InnerOptSize size(bool backward) const { return {B, K, C, N, sizeof(S), sizeof(A), backward}; }

  void reset() {
    const std::vector<A> zeros(B * N);
    copy(own, zeros.data(), B * N * sizeof(A));
    for (int64_t task = 0; task < B; ++task)
      copy(trajectory + task * (T + 1) * K * C, prototypes + task * K * C, K * C * sizeof(A));
    copy(T % 2 ? v_odd : v_even, gradient, B * K * C * sizeof(A));
  }

  // The trajectory and the sums as the backward takes them, without the last.
  void between() {
    for (int64_t task = 0; task < B; ++task) {
      copy(before + task * T * K * C, trajectory + task * (T + 1) * K * C, T * K * C * sizeof(A));
      copy(h_before + task * T * K * C, h + task * (T + 1) * K * C, T * K * C * sizeof(A));
    }
  }

  std::vector<A> everything() const {
    std::vector<A> result;
    for (const Array<A>* array : {&trajectory, &h_before, &cosine, &v_even, &coefficient, &basis, &own}) {
      const std::vector<A> values = array->read();
      result.insert(result.end(), values.begin(), values.end());
    }
    return result;
  }

  const int64_t K, C, N;
  const Array<S> features{B * C * N, 1};
  const Array<A> prototypes{B * K * C, 2}, gradient{B * K * C, 3};
  const Array<int64_t> labels{B * N, 5, int(K)};
  const Array<int32_t> target{B * N};
  const Array<int> counts{B * 2}, arrived{B};
  const Array<A> weight{B}, vectors{B * K * C}, prototype_norm{B * K}, norms{B * N};
  const Array<A> parts{B * divide_up(N, kStrip) * (K - 1) * C}, sums{B * (K - 1) * C};
  const Array<A> trajectory{B * (T + 1) * K * C}, h{B * (T + 1) * K * C}, before{B * T * K * C},
      h_before{B * T * K * C};
  const Array<A> cosine{B * T * (K - 1) * N}, v_even{B * K * C}, v_odd{B * K * C}, own{B * N};
  const Array<A> coefficient{B * T * 2 * (K - 1) * N}, basis{B * T * 2 * (K - 1) * C};
  const Features<S> f;
  const Descent<A> descent;
};

template <class A>
void same(const char* what, const char* type, int chunk_pixels, const std::vector<A>& values,
          const std::vector<A>& expected) {
  double sum = 0;
  for (const A value : values) sum += double(value);
  const bool equal = std::memcmp(values.data(), expected.data(), values.size() * sizeof(A)) == 0;
  if (!equal || sum != sum) ++failures;
  std::printf("%-12s %-8s %2d pixels   %14.6f%s\n", what, type, chunk_pixels, sum, equal ? "" : "  DIFFERS");
}

// Chunks of `chunk_pixels`, by single steps and with so many in a block of the resident kernel.
template <class S, int kHeld>
void run_inner_opt(const char* type, int64_t K, int64_t C, int64_t N, bool channels_last, int chunk_pixels,
                   int64_t chunks_per_block) {
  InnerOptCase<S, kHeld> problem(K, C, N, channels_last);
  const auto expected = problem.template single_steps<true>(chunk_pixels);
  same("steps", type, chunk_pixels, problem.template single_steps<true>(chunk_pixels), expected);
  same("unstaged", type, chunk_pixels, problem.template single_steps<false>(chunk_pixels), expected);
  for (int i = 0; i < 2; ++i)
    same("resident", type, chunk_pixels, problem.resident(chunk_pixels, chunks_per_block), expected);
}

}  // namespace driver
