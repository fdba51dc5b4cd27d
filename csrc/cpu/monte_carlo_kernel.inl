// The mean of the softmaxes of L samples, sixteen pixels of a row at a time: the probabilities of a single sample exist
// for these sixteen only.

// A logit this far below the largest has probability 0 all the same; infinitely far would give an entropy inf times 0.
constexpr int kFarBelow = -10000;

// Logit k of sample l at the pixels x..x+16.
template <class A>
static inline Block<A> logits_block(const SampleRow<A>& row, int64_t l, int64_t k, int64_t x) {
  const int64_t at = (l * row.classes + k) * row.stride + x;
  Block<A> z = load(row.here + at) * splat(row.here_share);
  if (row.next_share != 0) multiply_add(z, row.next_share, load(row.next + at));
  return z;
}

// The probabilities p [K][16] of the pixels x..x+16 of sample l; returns their entropy where it is wanted.
template <bool kEntropy, class A>
static inline Block<A> softmax_block(const SampleRow<A>& row, int64_t l, int64_t x, A* p) {
  Block<A> total, around;  // around: sum_k p_k (z_k - top)
  if (row.classes == 2) {
    // One exponential instead of two: that of the smaller logit against the larger.
    const Block<A> difference = logits_block(row, l, 1, x) - logits_block(row, l, 0, x);
    const Block<A> opposite = splat(A(0)) - difference;
    const Block<A> below = at_least(where_positive(difference, opposite, difference), A(kFarBelow));
    const Block<A> e = exp_nonpositive(below);
    total = e + splat(A(1));
    const Block<A> larger = splat(A(1)) / total, smaller = e * larger;
    store(p, where_positive(difference, smaller, larger));
    store(p + kBlock, where_positive(difference, larger, smaller));
    if (kEntropy) around = below * smaller;
  } else {
    Block<A> top = logits_block(row, l, 0, x);
    store(p, top);
    for (int64_t k = 1; k < row.classes; ++k) {
      const Block<A> z = logits_block(row, l, k, x);
      store(p + k * kBlock, z);
      top = where_positive(z - top, z, top);
    }
    total = around = splat(A(0));
    for (int64_t k = 0; k < row.classes; ++k) {
      const Block<A> below = at_least(load(p + k * kBlock) - top, A(kFarBelow)), e = exp_nonpositive(below);
      store(p + k * kBlock, e);
      total = total + e;
      if (kEntropy) multiply_add(around, below, e);
    }
    const Block<A> share = splat(A(1)) / total;
    for (int64_t k = 0; k < row.classes; ++k) store(p + k * kBlock, load(p + k * kBlock) * share);
    if (kEntropy) around = around * share;
  }
  return kEntropy ? logarithm(total) - around : total;
}

template <class A>
static inline void store_some(A* to, const Block<A>& from, int64_t count) {
  if (count == kBlock) return store(to, from);
  A all[kBlock];
  store(all, from);
  for (int i = 0; i < count; ++i) to[i] = all[i];
}

template <class A>
static inline Block<A> load_some(const A* from, int64_t count) {
  if (count == kBlock) return load(from);
  A all[kBlock] = {};
  for (int i = 0; i < count; ++i) all[i] = from[i];
  return load(all);
}

template <bool kUncertainty, class A>
static inline void average_blocks(const SampleRow<A>& row, const UncertaintyRow<A>& to, A* scratch) {
  const int64_t L = row.samples, K = row.classes;
  const Block<A> part = splat(A(1) / A(L));
  for (int64_t x = 0; x < row.width; x += kBlock) {
    const int64_t count = least<int64_t>(kBlock, row.width - x);
    Block<A> of_samples = splat(A(0)), of_mean = splat(A(0));  // entropies
    for (int64_t l = 0; l < L; ++l) {
      const Block<A> entropy = softmax_block<kUncertainty>(row, l, x, scratch + l * K * kBlock);
      if (kUncertainty) multiply_add(of_samples, part, entropy);
    }
    for (int64_t k = 0; k < K; ++k) {
      const A* p = scratch + k * kBlock;
      Block<A> mean = load(p);
      for (int64_t l = 1; l < L; ++l) mean = mean + load(p + l * K * kBlock);
      mean = mean * part;
      store_some(to.probabilities + k * to.plane + x, mean, count);
      if (!kUncertainty) continue;
      Block<A> variance = splat(A(0));
      for (int64_t l = 0; l < L; ++l) {
        const Block<A> difference = load(p + l * K * kBlock) - mean;
        multiply_add(variance, difference, difference);
      }
      store_some(to.variance + k * to.plane + x, variance * part, count);
      of_mean = of_mean - mean * logarithm(at_least(mean, A(1e-30)));  // 0 log 0 is 0
    }
    if (!kUncertainty) continue;
    // Jensen: negative by rounding only. NaN stays NaN.
    of_mean = at_least(of_mean, A(0));
    store_some(to.entropy + x, of_mean, count);
    store_some(to.mutual_information + x, at_least(of_mean - of_samples, A(0)), count);
  }
}

template <class A>
static void average_row(const SampleRow<A>& row, const UncertaintyRow<A>& to, A* scratch) {
  if (to.entropy)
    average_blocks<true>(row, to, scratch);
  else
    average_blocks<false>(row, to, scratch);
}

template <class A>
static void average_gradient_row(const SampleRow<A>& row, const A* gradient, int64_t plane, A* scratch, A* to_here,
                                 A* to_next) {
  const int64_t K = row.classes;
  const Block<A> part = splat(A(1) / A(row.samples));
  for (int64_t x = 0; x < row.width; x += kBlock) {
    const int64_t count = least<int64_t>(kBlock, row.width - x);
    for (int64_t l = 0; l < row.samples; ++l) {
      softmax_block<false>(row, l, x, scratch);
      Block<A> along = splat(A(0));
      for (int64_t k = 0; k < K; ++k)
        multiply_add(along, load_some(gradient + k * plane + x, count), load(scratch + k * kBlock));
      for (int64_t k = 0; k < K; ++k) {
        const Block<A> centred = load_some(gradient + k * plane + x, count) - along;
        const Block<A> r = part * load(scratch + k * kBlock) * centred;
        const int64_t at = (l * K + k) * row.stride + x;
        Block<A> here = load(to_here + at);
        multiply_add(here, row.here_share, r);
        store(to_here + at, here);
        if (row.next_share == 0) continue;
        Block<A> next = load(to_next + at);
        multiply_add(next, row.next_share, r);
        store(to_next + at, next);
      }
    }
  }
}

template <class A>
static constexpr MonteCarloBodiesOf<A> monte_carlo_bodies() {
  return {upsample_row<A>, average_row<A>, average_gradient_row<A>};
}
