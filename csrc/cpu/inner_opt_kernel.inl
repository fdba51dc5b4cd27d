// The inner optimisation, swept tile by tile. Only the K-1 differences against class 0 are ever needed (softmax does
// not change when the same number is added to every logit, and the weights of a pixel sum to zero), so that the usual
// 1-way step costs one dot and one accumulation per feature value.

// --- packing -----------------------------------------------------------------------------------------------------

// Channels c..c+width of the pixels x..x+count, read channel by channel, to block[pixel][channel]; adds their squares.
template <class S, class A>
static inline void pack_block(const S* features, int64_t pixels, int64_t c, int64_t width, int64_t x, int64_t count,
                              S* block, A* squares) {
  // This block's own sum first: fewer roundings than adding 2,000 squares one by one.
  if (width == kTile && count == kTile) {
    Block<A> run = splat(A(0));
    for (int i = 0; i < kTile; ++i) {
      const Block<A> q = load(features + (c + i) * pixels + x);
      multiply_add(run, q, q);
    }
    store(squares, load(squares) + run);
    transpose_block(features + c * pixels + x, pixels, block);
    return;
  }
  A run[kTile] = {};
  for (int64_t i = 0; i < kTile; ++i)
    for (int64_t p = 0; p < count; ++p) {
      const S value = i < width ? features[(c + i) * pixels + x + p] : S{};
      block[p * kTile + i] = value;
      run[p] += widen(value) * widen(value);
    }
  for (int p = 0; p < kTile; ++p) squares[p] += run[p];
}

// The pixels x..x+count of channels-last features. A panel of channels at a time: the blocks of a pixel lie a kilobyte
// apart, so that those of all channels would evict one another from L1.
template <class S, class A>
static inline void pack_rows(const S* features, int64_t channels, int64_t x, int64_t count, S* tile, A* squares) {
  constexpr int64_t kPanel = 32 * kTile;
  const int64_t whole = channels / kTile * kTile;
  for (int64_t start = 0; start < whole; start += kPanel)
    for (int64_t p = 0; p < count; ++p) {
      const S* pixel = features + (x + p) * channels;
      Block<A> run = splat(A(0));
      for (int64_t c = start; c < least(start + kPanel, whole); c += kTile) {
        const Block<A> q = load(pixel + c);
        multiply_add(run, q, q);
        __builtin_memcpy(tile + c * count + p * kTile, pixel + c, kTile * sizeof(S));
      }
      squares[p] += sum(run);
    }
  if (whole == channels) return;
  for (int64_t p = 0; p < count; ++p)
    for (int64_t i = 0; i < kTile; ++i) {
      const S value = whole + i < channels ? features[(x + p) * channels + whole + i] : S{};
      tile[whole * count + p * kTile + i] = value;
      squares[p] += widen(value) * widen(value);
    }
}

template <class S, class A>
static void pack(const S* features, int64_t channels, int64_t pixels, bool channels_last, int64_t first, int64_t last,
                 S* tiles, A* inverse_norm) {
  const int64_t padded_channels = padded(channels);
  A squares[kChunk] = {};
  if (channels_last) {
    for (int64_t x = first; x < last; x += kTile)
      pack_rows(features, channels, x, least(kTile, last - x), tiles + x * padded_channels, squares + (x - first));
  } else {
    // Channels outside, so that each channel's row is read in runs of a whole chunk: a tile at a time would touch
    // another page for every channel.
    for (int64_t c = 0; c < channels; c += kTile)
      for (int64_t x = first; x < last; x += kTile) {
        const int64_t count = least(kTile, last - x);
        pack_block(features, pixels, c, least(kTile, channels - c), x, count, tiles + x * padded_channels + c * count,
                   squares + (x - first));
      }
  }
  for (int64_t x = first; x < last; ++x) inverse_norm[x] = inverse_root(squares[x - first]);
}

// --- the inner loops ---------------------------------------------------------------------------------------------

// dots[p] = vector . pixel p of a tile.
template <class S, class A>
struct Dots {
  const S* tile;
  const A* vector;
  A* dots;
};

// partial += sum over the pixels p of a tile of weights[p] * pixel p.
template <class S, class A>
struct Sum {
  const S* tile;
  const A* weights;
  A* partial;
};

// Rows row..row+kRows of tiles of `count` pixels. Both at once, of two tiles: while one is added up from L2, the next
// streams in, where one after the other would leave memory idle half of the time.
template <bool kDots, bool kSum, int kRows, class S, class A>
static inline void sweep_rows(int64_t count, int64_t row, int64_t blocks, const Dots<S, A>& d, const Sum<S, A>& s) {
  Block<A> dots[kRows];
  for (int r = 0; r < kRows; ++r) dots[r] = splat(A(0));
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t at = (b * count + row) * kTile;
    if (kSum) {
      // Two sums, so that their additions overlap.
      Block<A> even = load(s.partial + b * kTile), odd = splat(A(0));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        multiply_add(r % 2 ? odd : even, s.weights[row + r], load(s.tile + at + r * kTile));
      store(s.partial + b * kTile, kRows > 1 ? even + odd : even);
    }
    if (kDots) {
      const Block<A> v = load(d.vector + b * kTile);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) multiply_add(dots[r], v, load(d.tile + at + r * kTile));
    }
  }
  if (kDots)
    for (int r = 0; r < kRows; ++r) d.dots[row + r] = sum(dots[r]);
}

template <bool kDots, bool kSum, class S, class A>
static inline void sweep_tile(int64_t count, int64_t blocks, const Dots<S, A>& d, const Sum<S, A>& s) {
  constexpr int kRows = registers_for_blocks<A>();
  int64_t row = 0;
  for (; row + kRows <= count; row += kRows) sweep_rows<kDots, kSum, kRows>(count, row, blocks, d, s);
  for (; row < count; ++row) sweep_rows<kDots, kSum, 1>(count, row, blocks, d, s);
}

// Scratch for the scalars of one tile: kept on the stack for few classes.
template <class A>
struct TileScalars {
  static constexpr int64_t kOnStack = 16;
  A on_stack[kOnStack * kTile];
  A* values;
  explicit TileScalars(int64_t rows)
      : values(rows <= kOnStack ? on_stack : static_cast<A*>(__builtin_malloc(rows * kTile * sizeof(A)))) {
    for (int64_t i = 0; i < rows * kTile; ++i) values[i] = 0;
  }
  ~TileScalars() {
    if (values != on_stack) __builtin_free(values);
  }
  TileScalars(const TileScalars&) = delete;
  TileScalars& operator=(const TileScalars&) = delete;
};

// The frame of a sweep over the pixels first..last: for every tile the dots with all vectors [K-1][Cp], then
// weigh(x, count, dots, weights), which makes [K-1][kTile] weights of [K-1][kTile] dots, then
// partial [K-1][Cp] = sum over the pixels of weights[k][p] * pixel p.
template <class S, class A, class Weigh>
static inline void sweep(const PackedTask<S>& task, const A* vectors, int64_t first, int64_t last, A* partial,
                         const Weigh& weigh) {
  const int64_t others = task.classes - 1, channels = task.padded_channels, blocks = channels / kTile;
  for (A* p = partial; p != partial + others * channels; ++p) *p = 0;
  TileScalars<A> dots(others), weights(others);
  const auto dots_of = [&](int64_t x, int64_t k) {
    return Dots<S, A>{task.tiles + x * channels, vectors + k * channels, dots.values + k * kTile};
  };
  const auto sum_of = [&](int64_t x, int64_t k) {
    return Sum<S, A>{task.tiles + x * channels, weights.values + k * kTile, partial + k * channels};
  };
  const auto all_dots = [&](int64_t x, int64_t k) {
    for (; k < others; ++k) sweep_tile<true, false>(least(kTile, last - x), blocks, dots_of(x, k), sum_of(x, k));
  };
  if (others > 0) all_dots(first, 0);
  for (int64_t x = first; x < last; x += kTile) {
    const int64_t count = least(kTile, last - x), next = x + kTile;
    weigh(x, count, dots.values, weights.values);
    for (int64_t k = 0; k + 1 < others; ++k) sweep_tile<false, true>(count, blocks, dots_of(x, k), sum_of(x, k));
    if (others == 0) continue;
    if (next + kTile <= last) {
      sweep_tile<true, true>(kTile, blocks, dots_of(next, 0), sum_of(x, others - 1));
      all_dots(next, 1);
    } else {
      sweep_tile<false, true>(count, blocks, dots_of(x, 0), sum_of(x, others - 1));
      if (next < last) all_dots(next, 0);
    }
  }
}

// --- per pixel ---------------------------------------------------------------------------------------------------

// Softmax over the classes of one tile: d [K-1][kTile] -> s [K-1][kTile] (classes 1..K-1).
template <class A>
static inline void softmax(const A* d, int64_t others, A scale, A* s) {
  A top[kTile] = {}, base[kTile], total[kTile];
  for (int64_t k = 0; k < others; ++k)
    for (int p = 0; p < kTile; ++p) {
      s[k * kTile + p] = scale * d[k * kTile + p];
      top[p] = s[k * kTile + p] > top[p] ? s[k * kTile + p] : top[p];
    }
  for (int p = 0; p < kTile; ++p) base[p] = -top[p];
  exp_nonpositive(base);
  for (int p = 0; p < kTile; ++p) total[p] = base[p];
  for (int64_t k = 0; k < others; ++k) {
    for (int p = 0; p < kTile; ++p) s[k * kTile + p] -= top[p];
    exp_nonpositive(s + k * kTile);
    for (int p = 0; p < kTile; ++p) total[p] += s[k * kTile + p];
  }
  for (int64_t k = 0; k < others; ++k)
    for (int p = 0; p < kTile; ++p) s[k * kTile + p] /= total[p];
}

template <class S, class A>
static void descend(const PackedTask<S>& task, const A* difference, A scale, A weight, int64_t first, int64_t last,
                    A* cosine, A* partial) {
  const int64_t others = task.classes - 1;
  sweep(task, difference, first, last, partial, [&](int64_t x, int64_t count, A* d, A* w) {
    const A* inverse_norm = task.inverse_norm + x;
    for (int64_t k = 0; k < others; ++k)
      for (int64_t p = 0; p < count; ++p) {
        d[k * kTile + p] *= inverse_norm[p];
        if (cosine) cosine[k * task.pixels + x + p] = d[k * kTile + p];
      }
    softmax(d, others, scale, w);
    for (int64_t k = 0; k < others; ++k)
      for (int64_t p = 0; p < count; ++p) {
        const int32_t t = task.target[x + p];
        A& w_k = w[k * kTile + p];
        w_k = t < 0 ? A(0) : weight * (w_k - (t == k + 1 ? A(1) : A(0))) * inverse_norm[p];
      }
  });
}

template <class S, class A>
static void ascend(const PackedTask<S>& task, const A* direction, const A* cosine, A scale, A weight, int64_t first,
                   int64_t last, A* coefficient, A* along, A* partial) {
  const int64_t others = task.classes - 1;
  TileScalars<A> d(others);
  sweep(task, direction, first, last, partial, [&](int64_t x, int64_t count, A* a, A* b) {
    const A* inverse_norm = task.inverse_norm + x;
    A mean_a[kTile] = {};  // sum_j s_j a_j; a_0 = 0
    for (int64_t k = 0; k < others; ++k)
      for (int64_t p = 0; p < count; ++p) d.values[k * kTile + p] = cosine[k * task.pixels + x + p];
    softmax(d.values, others, scale, b);
    for (int64_t k = 0; k < others; ++k)
      for (int64_t p = 0; p < count; ++p) {
        a[k * kTile + p] *= inverse_norm[p];
        mean_a[p] += b[k * kTile + p] * a[k * kTile + p];
      }
    for (int64_t k = 0; k < others; ++k) {
      A* s_k = b + k * kTile;  // becomes b_k q^ = b_k inverse_norm q
      const A *a_k = a + k * kTile, *d_k = d.values + k * kTile;
      for (int64_t p = 0; p < count; ++p) {
        const int32_t t = task.target[x + p];
        const A w_k = t < 0 ? A(0) : weight * (s_k[p] - (t == k + 1 ? A(1) : A(0)));
        const A b_k = t < 0 ? A(0) : weight * scale * s_k[p] * (a_k[p] - mean_a[p]);
        if (coefficient) {
          coefficient[k * task.pixels + x + p] = w_k;
          coefficient[(others + k) * task.pixels + x + p] = b_k;
          along[x + p] += w_k * a_k[p] + b_k * d_k[p];
        }
        s_k[p] = b_k * inverse_norm[p];
      }
    }
  });
}

// --- gradient to the features ------------------------------------------------------------------------------------

//   out[i][l] = sum_j scalar[j][i] lane[j][l] + own * q[i][l]
// where l runs along the axis that is contiguous in memory (pixels for NCHW, channels for channels-last), which has
// `length` values, and i along the other; `own` is one number per pixel, so own_lane[l] for NCHW and own_scalar[i] for
// channels-last, the other being null.
template <int kRows, class S, class A>
static inline void gradient_rows(const S* q, int64_t length, const A* lane, const A* scalar, int64_t scalar_stride,
                                 int64_t count, const A* own_lane, const A* own_scalar, int64_t i, S* out) {
  int64_t l = 0;
  for (; l + kBlock <= length; l += kBlock) {
    Block<A> sums[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Block<A> own = own_lane ? load(own_lane + l) : splat(own_scalar[i + r]);
      sums[r] = own * load(q + (i + r) * length + l);
    }
    for (int64_t j = 0; j < count; ++j) {
      const Block<A> v = load(lane + j * length + l);
      const A* s = scalar + j * scalar_stride + i;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) multiply_add(sums[r], s[r], v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) store(out + (i + r) * length + l, sums[r]);
  }
  for (; l < length; ++l)
    for (int r = 0; r < kRows; ++r) {
      A total = (own_lane ? own_lane[l] : own_scalar[i + r]) * widen(q[(i + r) * length + l]);
      for (int64_t j = 0; j < count; ++j) total += scalar[j * scalar_stride + i + r] * lane[j * length + l];
      narrow(total, out[(i + r) * length + l]);
    }
}

// A group of rows at a time, each from end to end: runs as long as memory has them.
template <class S, class A>
static void gradient(FeaturePlanes<S> f, const A* coefficient, const A* basis, int64_t count, const A* own,
                     int64_t first, int64_t last, S* d_features) {
  constexpr int kRows = registers_for_blocks<A>();
  const bool planes = f.pixel_stride == 1;
  const int64_t length = planes ? f.pixels : f.channels, scalar_stride = planes ? f.channels : f.pixels;
  const A *lane = planes ? coefficient : basis, *scalar = planes ? basis : coefficient;
  const A *own_lane = planes ? own : nullptr, *own_scalar = planes ? nullptr : own;
  int64_t i = first;
  for (; i + kRows <= last; i += kRows)
    gradient_rows<kRows>(f.data, length, lane, scalar, scalar_stride, count, own_lane, own_scalar, i, d_features);
  for (; i < last; ++i)
    gradient_rows<1>(f.data, length, lane, scalar, scalar_stride, count, own_lane, own_scalar, i, d_features);
}

// --- prototypes --------------------------------------------------------------------------------------------------

template <class A>
static A dot(const A* x, const A* y, int64_t channels) {
  Block<A> total = splat(A(0));
  for (int64_t c = 0; c < channels; c += kBlock) multiply_add(total, load(x + c), load(y + c));
  return sum(total);
}

template <class A>
static void minus_sum_of_others(A* vectors, int64_t classes, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) vectors[c] = 0;
  for (int64_t k = 1; k < classes; ++k)
    for (int64_t c = 0; c < channels; ++c) vectors[c] -= vectors[k * channels + c];
}

template <class A>
static void normalise(const A* prototypes, int64_t classes, int64_t channels, A* unit, A* inverse_norm, A* difference) {
  for (int64_t k = 0; k < classes; ++k) {
    const A* p = prototypes + k * channels;
    inverse_norm[k] = inverse_root(dot(p, p, channels));
    for (int64_t c = 0; c < channels; ++c) unit[k * channels + c] = p[c] * inverse_norm[k];
    if (k == 0) continue;
    for (int64_t c = 0; c < channels; ++c) difference[(k - 1) * channels + c] = unit[k * channels + c] - unit[c];
  }
}

template <class A>
static void step(const A* unit, const A* inverse_norm, int64_t classes, int64_t channels, A lr, A* h, A* prototypes) {
  minus_sum_of_others(h, classes, channels);
  for (int64_t k = 0; k < classes; ++k) {
    const A *p = unit + k * channels, *h_k = h + k * channels;
    const A along = dot(p, h_k, channels), rate = lr * inverse_norm[k];
    for (int64_t c = 0; c < channels; ++c) prototypes[k * channels + c] -= rate * (h_k[c] - along * p[c]);
  }
}

template <class A>
static void direction(const A* v, const A* unit, const A* inverse_norm, int64_t classes, int64_t channels, A* u) {
  const A along_0 = dot(unit, v, channels);
  for (int64_t k = 1; k < classes; ++k) {
    const A *p = unit + k * channels, *v_k = v + k * channels;
    const A along = dot(p, v_k, channels);
    for (int64_t c = 0; c < channels; ++c)
      u[(k - 1) * channels + c] =
          (v_k[c] - along * p[c]) * inverse_norm[k] - (v[c] - along_0 * unit[c]) * inverse_norm[0];
  }
}

template <class A>
static void step_back(const A* unit, const A* inverse_norm, const A* h, int64_t classes, int64_t channels, A lr, A* b,
                      A* v) {
  minus_sum_of_others(b, classes, channels);
  for (int64_t k = 0; k < classes; ++k) {
    const A *p = unit + k * channels, *h_k = h + k * channels, *b_k = b + k * channels;
    A* v_k = v + k * channels;
    const A pb = dot(p, b_k, channels), hv = dot(h_k, v_k, channels), vp = dot(v_k, p, channels),
            hp = dot(h_k, p, channels);
    const A n = inverse_norm[k], nn = n * n;
    // (Hv)_k collected by vector: B, p, h, v.
    const A of_p = -pb * n + (3 * hp * vp - hv) * nn, of_h = -vp * nn, of_v = -hp * nn;
    for (int64_t c = 0; c < channels; ++c) v_k[c] -= lr * (n * b_k[c] + of_p * p[c] + of_h * h_k[c] + of_v * v_k[c]);
  }
}

template <class A>
static void reduce(const A* partials, int64_t chunks, int64_t count, A* total) {
  for (int64_t i = 0; i < count; ++i) total[i] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < count; ++i) total[i] += partials[chunk * count + i];
}

template <class S>
static constexpr InnerOptBodiesOf<S> inner_opt_bodies() {
  using A = Accumulator<S>;
  return {pack<S, A>, descend<S, A>, ascend<S, A>, gradient<S, A>, normalise<A>,
          step<A>,    direction<A>,  step_back<A>, reduce<A>};
}
