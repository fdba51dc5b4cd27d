// Cosines of every pixel with every prototype, their backward, and the cross-entropy of the upsampled cosines. The
// features are read once forward and once back; what is at the target's resolution exists only a row at a time.

// --- cosines -----------------------------------------------------------------------------------------------------

// NCHW: kBlocks blocks of pixels run over the channels; kClasses dots, and the squares where kSquares.
template <int kBlocks, int kClasses, bool kSquares, class S, class A>
static void cosine_planes(FeaturePlanes<S> f, const A* vectors, int64_t x, A* squares, A* dots) {
  Block<A> totals[kClasses + 1][kBlocks];
  for (int k = 0; k <= kClasses; ++k)
    for (int b = 0; b < kBlocks; ++b) totals[k][b] = splat(A(0));
  for (int64_t start = 0; start < f.channels; start += kRun) {
    Block<A> sums[kClasses + 1][kBlocks];
    for (int k = 0; k <= kClasses; ++k)
      for (int b = 0; b < kBlocks; ++b) sums[k][b] = splat(A(0));
    for (int64_t c = start; c < least(start + kRun, f.channels); ++c) {
      const S* row = f.data + c * f.channel_stride + x;
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) {
        const Block<A> q = load(row + b * kBlock);
#pragma GCC unroll 8
        for (int k = 0; k < kClasses; ++k) multiply_add(sums[k][b], vectors[k * f.channels + c], q);
        if (kSquares) multiply_add(sums[kClasses][b], q, q);
      }
    }
    for (int k = 0; k <= kClasses; ++k)
      for (int b = 0; b < kBlocks; ++b) totals[k][b] = totals[k][b] + sums[k][b];
  }
  for (int b = 0; b < kBlocks; ++b) {
    for (int k = 0; k < kClasses; ++k) store(dots + k * f.pixels + x + b * kBlock, totals[k][b]);
    if (kSquares) store(squares + x + b * kBlock, totals[kClasses][b]);
  }
}

// Channels-last: a pixel's channels are one run of memory.
template <class S, class A>
static A square_row(const S* pixel, int64_t channels) {
  Block<A> total = splat(A(0));
  int64_t c = 0;
  for (; c + kBlock <= channels; c += kBlock) multiply_add(total, load(pixel + c), load(pixel + c));
  A result = sum(total);
  for (; c < channels; ++c) result += widen(pixel[c]) * widen(pixel[c]);
  return result;
}

template <class S, class A>
static A square_pixel(FeaturePlanes<S> f, int64_t x) {
  const S* pixel = f.data + x * f.pixel_stride;
  A total = 0;
  for (int64_t start = 0; start < f.channels; start += kRun) {
    A run = 0;
    for (int64_t c = start; c < least(start + kRun, f.channels); ++c)
      run += widen(pixel[c * f.channel_stride]) * widen(pixel[c * f.channel_stride]);
    total += run;
  }
  return total;
}

template <class S, class A>
static void cosines(FeaturePlanes<S> f, const A* unit_prototypes, int64_t classes, int64_t first, int64_t last,
                    A* inverse_norm, A* cosine) {
  constexpr int kBlocks = registers_for_blocks<A>() >= 4 ? registers_for_blocks<A>() / 2 : 1;
  A* squares = inverse_norm;
  if (f.pixel_stride == 1) {
    int64_t x = first;
    for (; x + kBlocks * kBlock <= last; x += kBlocks * kBlock) {
      int64_t k = 0;
      if (classes >= 2) {
        cosine_planes<kBlocks, 2, true>(f, unit_prototypes, x, squares, cosine);
        k = 2;
      } else {
        cosine_planes<kBlocks, 1, true>(f, unit_prototypes, x, squares, cosine);
        k = 1;
      }
      for (; k + 2 <= classes; k += 2)
        cosine_planes<kBlocks, 2, false>(f, unit_prototypes + k * f.channels, x, squares, cosine + k * f.pixels);
      if (k < classes)
        cosine_planes<kBlocks, 1, false>(f, unit_prototypes + k * f.channels, x, squares, cosine + k * f.pixels);
    }
    for (; x < last; ++x) {
      squares[x] = square_pixel<S, A>(f, x);
      for (int64_t k = 0; k < classes; ++k)
        cosine[k * f.pixels + x] = project_pixel(f, unit_prototypes + k * f.channels, x);
    }
  } else {
    for (int64_t x = first; x < last; ++x) {
      const S* pixel = f.data + x * f.pixel_stride;
      squares[x] = square_row<S, A>(pixel, f.channels);
      for (int64_t k = 0; k < classes; ++k)
        cosine[k * f.pixels + x] = project_row(pixel, unit_prototypes + k * f.channels, f.channels);
    }
  }
  for (int64_t x = first; x < last; ++x) inverse_norm[x] = inverse_root(squares[x]);
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t x = first; x < last; ++x) cosine[k * f.pixels + x] *= inverse_norm[x];
}

template <class S, class A>
static void cosine_backward(FeaturePlanes<S> f, const A* unit_prototypes, const A* weight, const A* own,
                            int64_t classes, int64_t first, int64_t last, A* sums, S* d_features) {
  // A few channels at a time: the second of the two loops finds them in the cache.
  constexpr int kRows = registers_for_blocks<A>();
  const bool planes = f.pixel_stride == 1;
  const int64_t step = planes ? kRows : 2 * kBlock;
  for (int64_t c = first; c < last; c += step) {
    const int64_t end = least(c + step, last);
    if (sums) pool(f, weight, classes, c, end, sums);
    if (!d_features) continue;
    const A* none = nullptr;
    if (planes) {
      int64_t i = c;
      for (; i + kRows <= end; i += kRows)
        gradient_rows<kRows>(f.data, f.pixels, weight, f.pixels, unit_prototypes, f.channels, classes, own, none, i, 0,
                             f.pixels, d_features);
      for (; i < end; ++i)
        gradient_rows<1>(f.data, f.pixels, weight, f.pixels, unit_prototypes, f.channels, classes, own, none, i, 0,
                         f.pixels, d_features);
    } else {
      int64_t i = 0;
      for (; i + kRows <= f.pixels; i += kRows)
        gradient_rows<kRows>(f.data, f.channels, unit_prototypes, f.channels, weight, f.pixels, classes, none, own, i,
                             c, end, d_features);
      for (; i < f.pixels; ++i)
        gradient_rows<1>(f.data, f.channels, unit_prototypes, f.channels, weight, f.pixels, classes, none, own, i, c,
                         end, d_features);
    }
  }
}

// --- cross-entropy -----------------------------------------------------------------------------------------------

template <class A>
static void upsample_row(const A* row, Bands<A> columns, A* output) {
  for (int64_t o = 0; o < columns.outputs; ++o) {
    A total = 0;
    for (int64_t i = columns.offset[o]; i < columns.offset[o + 1]; ++i)
      total += columns.weight[i] * row[columns.begin[o] + i - columns.offset[o]];
    output[o] = total;
  }
}

// The labels of the pixels x..x+16 of a target row, -1 beyond its end.
template <class A>
static inline void labels_of(const CrossEntropyRows<A>& target, int64_t y, int64_t x, int32_t* label) {
  const int64_t count = least<int64_t>(kBlock, target.width - x);
  for (int p = 0; p < kBlock; ++p) label[p] = p < count ? target.labels[y * target.width + x + p] : -1;
}

// For the same pixels: exp(logit - top) of every class, top, the sum of the exponentials, and the label's own logit.
template <class A>
static inline void exponentials(const CrossEntropyRows<A>& target, int64_t y, int64_t x, const int32_t* label, A* e,
                                A* top, A* total, A* at_label) {
  const int64_t plane = target.height * target.width, count = least<int64_t>(kBlock, target.width - x);
  const int64_t from = target.rows.offset[y], taps = target.rows.offset[y + 1] - from;
  const A* row = target.upsampled + target.rows.begin[y] * target.width + x;
  for (int64_t k = 0; k < target.classes; ++k) {
    A* z = e + k * kBlock;
    for (int p = 0; p < kBlock; ++p) z[p] = 0;
    for (int64_t i = 0; i < taps; ++i) {
      const A weight = target.scale * target.rows.weight[from + i];
      const A* source = row + k * plane + i * target.width;
      if (count == kBlock)
        for (int p = 0; p < kBlock; ++p) z[p] += weight * source[p];
      else
        for (int p = 0; p < count; ++p) z[p] += weight * source[p];
    }
    for (int p = 0; p < kBlock; ++p) top[p] = k == 0 || z[p] > top[p] ? z[p] : top[p];
    for (int p = 0; p < kBlock; ++p) at_label[p] = label[p] == int32_t(k) ? z[p] : at_label[p];
  }
  for (int p = 0; p < kBlock; ++p) total[p] = 0;
  for (int64_t k = 0; k < target.classes; ++k) {
    A* z = e + k * kBlock;
    for (int p = 0; p < kBlock; ++p) z[p] -= top[p];
    exp_nonpositive(z);
    for (int p = 0; p < kBlock; ++p) total[p] += z[p];
  }
}

template <class A>
static double loss_rows(const CrossEntropyRows<A>& target, int64_t first, int64_t last, A* scratch) {
  double loss = 0;
  for (int64_t y = first; y < last; ++y) {
    double row_loss = 0;
    for (int64_t x = 0; x < target.width; x += kBlock) {
      int32_t label[kBlock];
      A top[kBlock], total[kBlock], at_label[kBlock] = {};
      labels_of(target, y, x, label);
      exponentials(target, y, x, label, scratch, top, total, at_label);
      logarithm(total);
      for (int p = 0; p < kBlock; ++p)
        if (label[p] >= 0) row_loss += double(top[p] - at_label[p] + total[p]);
    }
    loss += row_loss;
  }
  return loss;
}

template <class A>
static void residual_rows(const CrossEntropyRows<A>& target, int64_t first, int64_t last, A factor, A* scratch,
                          A* to_row, A* to_next) {
  for (int64_t i = 0; i < target.classes * target.width; ++i) to_row[i] = to_next[i] = 0;
  for (int64_t y = first; y < last; ++y) {
    const int64_t from = target.rows.offset[y];
    const A here = target.rows.weight[from];
    const A next = target.rows.offset[y + 1] - from > 1 ? target.rows.weight[from + 1] : A(0);
    for (int64_t x = 0; x < target.width; x += kBlock) {
      const int64_t count = least<int64_t>(kBlock, target.width - x);
      int32_t label[kBlock];
      A top[kBlock], total[kBlock], at_label[kBlock], kept[kBlock], share[kBlock];
      labels_of(target, y, x, label);
      exponentials(target, y, x, label, scratch, top, total, at_label);
      for (int p = 0; p < kBlock; ++p) kept[p] = label[p] < 0 ? A(0) : factor;
      for (int p = 0; p < kBlock; ++p) share[p] = kept[p] / total[p];
      for (int64_t k = 0; k < target.classes; ++k) {
        A* r = scratch + k * kBlock;
        for (int p = 0; p < kBlock; ++p) r[p] = share[p] * r[p] - (label[p] == int32_t(k) ? kept[p] : A(0));
        A *down = to_row + k * target.width + x, *down_next = to_next + k * target.width + x;
        if (count == kBlock) {
          for (int p = 0; p < kBlock; ++p) down[p] += here * r[p];
          for (int p = 0; p < kBlock; ++p) down_next[p] += next * r[p];
        } else {
          for (int p = 0; p < count; ++p) down[p] += here * r[p];
          for (int p = 0; p < count; ++p) down_next[p] += next * r[p];
        }
      }
    }
  }
}

template <class S>
static constexpr CosineBodiesOf<S> cosine_bodies() {
  using A = Accumulator<S>;
  return {cosines<S, A>, cosine_backward<S, A>, 2 * kBlock, upsample_row<A>, loss_rows<A>, residual_rows<A>};
}
