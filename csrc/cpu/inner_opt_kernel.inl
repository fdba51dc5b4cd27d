// The inner optimisation, swept tile by tile. Only the K-1 differences against class 0 are ever needed (softmax does
// not change when the same number is added to every logit, and the weights of a pixel sum to zero), so that the usual
// 1-way step costs one dot and one accumulation per feature value.

// --- packing -----------------------------------------------------------------------------------------------------

// Channels c..c+width of the pixels x..x+count, read channel by channel, to block[pixel][channel]; adds their squares.
template <class S, class A>
static inline void pack_block(const S* features, int64_t pixels, int64_t c, int64_t width, int64_t x, int64_t count,
                              S* block, A* squares) {
  A run[kTile] = {};  // this block's own sum first: fewer roundings than adding 2,000 squares one by one
  if (width == kTile && count == kTile) {
    for (int i = 0; i < kTile; ++i) {
      const S* row = features + (c + i) * pixels + x;
      for (int p = 0; p < kTile; ++p) block[p * kTile + i] = row[p];
      for (int p = 0; p < kTile; ++p) run[p] += widen(row[p]) * widen(row[p]);
    }
  } else {
    for (int64_t i = 0; i < kTile; ++i)
      for (int64_t p = 0; p < count; ++p) {
        const S value = i < width ? features[(c + i) * pixels + x + p] : S{};
        block[p * kTile + i] = value;
        run[p] += widen(value) * widen(value);
      }
  }
  for (int p = 0; p < kTile; ++p) squares[p] += run[p];
}

template <class S, class A>
static inline void pack_rows(const S* features, int64_t channels, int64_t x, int64_t count, S* tile, A* squares) {
  for (int64_t c = 0; c < channels; c += kTile)
    for (int64_t p = 0; p < count; ++p) {
      const S* pixel = features + (x + p) * channels + c;
      S* out = tile + c * count + p * kTile;
      const int64_t width = least(kTile, channels - c);
      A run = 0;
      for (int64_t i = 0; i < kTile; ++i) {
        out[i] = i < width ? pixel[i] : S{};
        run += widen(out[i]) * widen(out[i]);
      }
      squares[p] += run;
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

// --- the two inner loops -----------------------------------------------------------------------------------------

// dots[r] = vector . pixel r, for kRows pixels of a tile that has `count`.
template <int kRows, class S, class A>
static inline void dot_rows(const S* tile, int64_t count, int64_t row, int64_t blocks, const A* vector, A* dots) {
  Block<A> sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = splat(A(0));
  for (int64_t b = 0; b < blocks; ++b) {
    const Block<A> v = load(vector + b * kTile);
    const S* block = tile + (b * count + row) * kTile;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) multiply_add(sums[r], v, load(block + r * kTile));
  }
  for (int r = 0; r < kRows; ++r) dots[row + r] = sum(sums[r]);
}

template <class S, class A>
static inline void dot_tile(const S* tile, int64_t count, int64_t blocks, const A* vector, A* dots) {
  constexpr int kRows = registers_for_blocks<A>();
  int64_t row = 0;
  for (; row + kRows <= count; row += kRows) dot_rows<kRows>(tile, count, row, blocks, vector, dots);
  for (; row < count; ++row) dot_rows<1>(tile, count, row, blocks, vector, dots);
}

// partial += sum over kRows pixels of weights[r] * pixel r. Two sums, so that their additions overlap.
template <int kRows, class S, class A>
static inline void add_rows(const S* tile, int64_t count, int64_t row, int64_t blocks, const A* weights, A* partial) {
  for (int64_t b = 0; b < blocks; ++b) {
    const S* block = tile + (b * count + row) * kTile;
    Block<A> even = load(partial + b * kTile), odd = splat(A(0));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) multiply_add(r % 2 ? odd : even, weights[row + r], load(block + r * kTile));
    store(partial + b * kTile, kRows > 1 ? even + odd : even);
  }
}

template <class S, class A>
static inline void add_tile(const S* tile, int64_t count, int64_t blocks, const A* weights, A* partial) {
  int64_t row = 0;
  for (; row + 8 <= count; row += 8) add_rows<8>(tile, count, row, blocks, weights, partial);
  for (; row < count; ++row) add_rows<1>(tile, count, row, blocks, weights, partial);
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

template <class S, class A>
static void descend(const PackedTask<S>& task, const A* difference, A scale, A weight, int64_t first, int64_t last,
                    A* cosine, A* partial) {
  const int64_t others = task.classes - 1, blocks = task.padded_channels / kTile;
  for (int64_t i = 0; i < others * task.padded_channels; ++i) partial[i] = 0;
  TileScalars<A> d(others), s(others);
  for (int64_t x = first; x < last; x += kTile) {
    const int64_t count = least(kTile, last - x);
    const S* tile = task.tiles + x * task.padded_channels;
    const A* inverse_norm = task.inverse_norm + x;
    for (int64_t k = 0; k < others; ++k) {
      A* row = d.values + k * kTile;
      dot_tile(tile, count, blocks, difference + k * task.padded_channels, row);
      for (int64_t p = 0; p < count; ++p) row[p] *= inverse_norm[p];
      if (cosine)
        for (int64_t p = 0; p < count; ++p) cosine[k * task.pixels + x + p] = row[p];
    }
    softmax(d.values, others, scale, s.values);
    for (int64_t k = 0; k < others; ++k) {
      A* w = s.values + k * kTile;
      for (int64_t p = 0; p < count; ++p) {
        const int32_t t = task.target[x + p];
        w[p] = t < 0 ? A(0) : weight * (w[p] - (t == k + 1 ? A(1) : A(0))) * inverse_norm[p];
      }
      add_tile(tile, count, blocks, w, partial + k * task.padded_channels);
    }
  }
}

template <class S, class A>
static void ascend(const PackedTask<S>& task, const A* direction, const A* cosine, A scale, A weight, int64_t first,
                   int64_t last, A* coefficient, A* along, A* partial) {
  const int64_t others = task.classes - 1, blocks = task.padded_channels / kTile;
  for (int64_t i = 0; i < others * task.padded_channels; ++i) partial[i] = 0;
  TileScalars<A> d(others), s(others), a(others);
  for (int64_t x = first; x < last; x += kTile) {
    const int64_t count = least(kTile, last - x);
    const S* tile = task.tiles + x * task.padded_channels;
    const A* inverse_norm = task.inverse_norm + x;
    A mean_a[kTile] = {};  // sum_j s_j a_j; a_0 = 0
    for (int64_t k = 0; k < others; ++k)
      for (int64_t p = 0; p < count; ++p) d.values[k * kTile + p] = cosine[k * task.pixels + x + p];
    softmax(d.values, others, scale, s.values);
    for (int64_t k = 0; k < others; ++k) {
      A* row = a.values + k * kTile;
      dot_tile(tile, count, blocks, direction + k * task.padded_channels, row);
      for (int64_t p = 0; p < count; ++p) {
        row[p] *= inverse_norm[p];
        mean_a[p] += s.values[k * kTile + p] * row[p];
      }
    }
    for (int64_t k = 0; k < others; ++k) {
      A* b = s.values + k * kTile;  // s_k, then b_k q^ = b_k inverse_norm q
      const A *a_k = a.values + k * kTile, *d_k = d.values + k * kTile;
      for (int64_t p = 0; p < count; ++p) {
        const int32_t t = task.target[x + p];
        const A w_k = t < 0 ? A(0) : weight * (b[p] - (t == k + 1 ? A(1) : A(0)));
        const A b_k = t < 0 ? A(0) : weight * scale * b[p] * (a_k[p] - mean_a[p]);
        if (coefficient) {
          coefficient[k * task.pixels + x + p] = w_k;
          coefficient[(others + k) * task.pixels + x + p] = b_k;
          along[x + p] += w_k * a_k[p] + b_k * d_k[p];
        }
        b[p] = b_k * inverse_norm[p];
      }
      add_tile(tile, count, blocks, b, partial + k * task.padded_channels);
    }
  }
}

// --- gradient to the features ------------------------------------------------------------------------------------

template <class S, class A>
static void gradient(const S* features, int64_t channels, int64_t pixels, bool channels_last, const A* inverse_norm,
                     const A* coefficient, const A* basis, int64_t count, const A* along, A lr, int64_t first,
                     int64_t last, S* d_features) {
  constexpr int kRows = registers_for_blocks<A>();
  const int64_t width = last - first;
  // This chunk's coefficients times -lr / |q|, and the factor of q itself.
  A* scaled = static_cast<A*>(__builtin_malloc(sizeof(A) * (count + 1) * width));
  A* own = scaled + count * width;
  for (int64_t j = 0; j < count; ++j)
    for (int64_t x = 0; x < width; ++x)
      scaled[j * width + x] = -lr * inverse_norm[first + x] * coefficient[j * pixels + first + x];
  for (int64_t x = 0; x < width; ++x)
    own[x] = lr * along[first + x] * inverse_norm[first + x] * inverse_norm[first + x];

  if (channels_last) {
    const S* q = features + first * channels;
    S* out = d_features + first * channels;
    int64_t i = 0;
    for (; i + kRows <= width; i += kRows)
      gradient_rows<kRows>(q, channels, basis, channels, scaled, width, count, static_cast<const A*>(nullptr), own, i,
                           0, channels, out);
    for (; i < width; ++i)
      gradient_rows<1>(q, channels, basis, channels, scaled, width, count, static_cast<const A*>(nullptr), own, i, 0,
                       channels, out);
  } else {
    const S* q = features + first;
    S* out = d_features + first;
    int64_t i = 0;
    for (; i + kRows <= channels; i += kRows)
      gradient_rows<kRows>(q, pixels, scaled, width, basis, channels, count, own, static_cast<const A*>(nullptr), i, 0,
                           width, out);
    for (; i < channels; ++i)
      gradient_rows<1>(q, pixels, scaled, width, basis, channels, count, own, static_cast<const A*>(nullptr), i, 0,
                       width, out);
  }
  __builtin_free(scaled);
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
