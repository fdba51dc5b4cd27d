// The mean of the softmaxes of L samples, sixteen pixels of a row at a time: the probabilities of a single sample exist
// for these sixteen only.

// A logit this far below the largest has probability 0 all the same; infinitely far would give an entropy inf times 0.
template <class A>
static inline A bounded(A below_top) {
  return below_top < A(-1e4) ? A(-1e4) : below_top;
}

// The probabilities p [K][16] of the pixels x..x+16 of one sample, and their entropy where it is not null.
template <class A>
static inline void softmax_block(const SampleRow<A>& row, int64_t l, int64_t x, A* p, A* entropy) {
  for (int64_t k = 0; k < row.classes; ++k) {
    const int64_t at = (l * row.classes + k) * row.stride + x;
    A* z = p + k * kBlock;
    for (int i = 0; i < kBlock; ++i) z[i] = row.here_share * row.here[at + i];
    if (row.next_share != 0)
      for (int i = 0; i < kBlock; ++i) z[i] += row.next_share * row.next[at + i];
  }
  A total[kBlock], share[kBlock], around[kBlock] = {};  // around: -sum_k p_k (z_k - top)
  if (row.classes == 2) {
    // One exponential instead of two: that of the smaller logit against the larger.
    A *first = p, *second = p + kBlock;
    A below[kBlock], e[kBlock];
    bool second_wins[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const A difference = second[i] - first[i];
      second_wins[i] = difference > 0;
      e[i] = below[i] = bounded(second_wins[i] ? -difference : difference);
    }
    exp_nonpositive(e);
    for (int i = 0; i < kBlock; ++i) total[i] = e[i] + 1;
    for (int i = 0; i < kBlock; ++i) share[i] = 1 / total[i];
    for (int i = 0; i < kBlock; ++i) around[i] = -below[i] * e[i] * share[i];
    for (int i = 0; i < kBlock; ++i) {
      const A smaller = e[i] * share[i];
      first[i] = second_wins[i] ? smaller : share[i];
      second[i] = second_wins[i] ? share[i] : smaller;
    }
  } else {
    A top[kBlock] = {};
    for (int64_t k = 0; k < row.classes; ++k)
      for (int i = 0; i < kBlock; ++i) top[i] = k == 0 || p[k * kBlock + i] > top[i] ? p[k * kBlock + i] : top[i];
    for (int i = 0; i < kBlock; ++i) total[i] = 0;
    for (int64_t k = 0; k < row.classes; ++k) {
      A *z = p + k * kBlock, below[kBlock];
      for (int i = 0; i < kBlock; ++i) z[i] = below[i] = bounded(z[i] - top[i]);
      exp_nonpositive(z);
      for (int i = 0; i < kBlock; ++i) total[i] += z[i];
      for (int i = 0; i < kBlock; ++i) around[i] -= below[i] * z[i];
    }
    for (int i = 0; i < kBlock; ++i) share[i] = 1 / total[i];
    for (int i = 0; i < kBlock; ++i) around[i] *= share[i];
    for (int64_t k = 0; k < row.classes; ++k)
      for (int i = 0; i < kBlock; ++i) p[k * kBlock + i] *= share[i];
  }
  if (!entropy) return;
  logarithm(total);
  for (int i = 0; i < kBlock; ++i) entropy[i] = total[i] + around[i];
}

template <class A>
static inline void store_some(A* to, const A* from, int64_t count) {
  if (count == kBlock)
    for (int i = 0; i < kBlock; ++i) to[i] = from[i];
  else
    for (int i = 0; i < count; ++i) to[i] = from[i];
}

template <class A>
static void average_row(const SampleRow<A>& row, const UncertaintyRow<A>& to, A* scratch) {
  const int64_t L = row.samples, K = row.classes;
  const A part = A(1) / A(L);
  for (int64_t x = 0; x < row.width; x += kBlock) {
    const int64_t count = least<int64_t>(kBlock, row.width - x);
    A of_samples[kBlock] = {}, of_mean[kBlock] = {};  // entropies
    for (int64_t l = 0; l < L; ++l) {
      A entropy[kBlock];
      softmax_block(row, l, x, scratch + l * K * kBlock, to.entropy ? entropy : nullptr);
      if (to.entropy)
        for (int i = 0; i < kBlock; ++i) of_samples[i] += part * entropy[i];
    }
    for (int64_t k = 0; k < K; ++k) {
      const A* p = scratch + k * kBlock;
      A mean[kBlock] = {};
      for (int64_t l = 0; l < L; ++l)
        for (int i = 0; i < kBlock; ++i) mean[i] += p[l * K * kBlock + i];
      for (int i = 0; i < kBlock; ++i) mean[i] *= part;
      store_some(to.probabilities + k * to.plane + x, mean, count);
      if (!to.entropy) continue;
      A variance[kBlock] = {}, log_mean[kBlock];
      for (int64_t l = 0; l < L; ++l)
        for (int i = 0; i < kBlock; ++i) {
          const A difference = p[l * K * kBlock + i] - mean[i];
          variance[i] += difference * difference;
        }
      for (int i = 0; i < kBlock; ++i) variance[i] *= part;
      store_some(to.variance + k * to.plane + x, variance, count);
      // 0 log 0 is 0.
      for (int i = 0; i < kBlock; ++i) log_mean[i] = mean[i] < A(1e-30) ? A(1e-30) : mean[i];
      logarithm(log_mean);
      for (int i = 0; i < kBlock; ++i) of_mean[i] -= mean[i] * log_mean[i];
    }
    if (!to.entropy) continue;
    // Jensen: the difference is negative by rounding only. NaN stays NaN.
    for (int i = 0; i < kBlock; ++i) of_mean[i] = of_mean[i] < 0 ? A(0) : of_mean[i];
    for (int i = 0; i < kBlock; ++i) of_samples[i] = of_mean[i] - of_samples[i];
    for (int i = 0; i < kBlock; ++i) of_samples[i] = of_samples[i] < 0 ? A(0) : of_samples[i];
    store_some(to.entropy + x, of_mean, count);
    store_some(to.mutual_information + x, of_samples, count);
  }
}

template <class A>
static void average_gradient_row(const SampleRow<A>& row, const A* gradient, int64_t plane, A* scratch, A* to_here,
                                 A* to_next) {
  const int64_t K = row.classes;
  const A part = A(1) / A(row.samples);
  for (int64_t x = 0; x < row.width; x += kBlock) {
    const int64_t count = least<int64_t>(kBlock, row.width - x);
    for (int64_t l = 0; l < row.samples; ++l) {
      softmax_block(row, l, x, scratch, static_cast<A*>(nullptr));
      A along[kBlock] = {};
      for (int64_t k = 0; k < K; ++k)
        for (int i = 0; i < count; ++i) along[i] += gradient[k * plane + x + i] * scratch[k * kBlock + i];
      for (int64_t k = 0; k < K; ++k) {
        A r[kBlock] = {};
        for (int i = 0; i < count; ++i)
          r[i] = part * scratch[k * kBlock + i] * (gradient[k * plane + x + i] - along[i]);
        const int64_t at = (l * K + k) * row.stride + x;
        for (int i = 0; i < kBlock; ++i) to_here[at + i] += row.here_share * r[i];
        if (row.next_share != 0)
          for (int i = 0; i < kBlock; ++i) to_next[at + i] += row.next_share * r[i];
      }
    }
  }
}

template <class A>
static constexpr MonteCarloBodiesOf<A> monte_carlo_bodies() {
  return {upsample_row<A>, average_row<A>, average_gradient_row<A>};
}
