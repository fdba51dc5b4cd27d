// The cross-entropy of upsampled cosines, sixteen target pixels at a time. Only the differences of the logits against
// class 0 are needed, as in the inner optimisation; what is at the target's resolution exists in registers only.

template <class A>
static void upsample_row(const A* row, Bands<A> columns, A* output) {
  for (int64_t o = 0; o < columns.outputs; ++o) {
    A total = 0;
    for (int64_t i = columns.offset[o]; i < columns.offset[o + 1]; ++i)
      total += columns.weight[i] * row[columns.begin[o] + i - columns.offset[o]];
    output[o] = total;
  }
}

// The labels of `count` pixels; -1 beyond them.
template <class A>
static inline Block<A> labels_of(const int32_t* labels, int64_t count) {
  A value[kBlock];
  if (count >= kBlock)
    for (int p = 0; p < kBlock; ++p) value[p] = A(labels[p]);
  else
    for (int p = 0; p < kBlock; ++p) value[p] = p < count ? A(labels[p]) : A(-1);
  return load(value);
}

// A target row between the feature rows it is interpolated from.
template <class A>
struct TargetRow {
  const A* upper;  // plane 0; [K-1][H][padded w]
  int64_t next;    // from there to the other feature row; 0 where there is only one
  A upper_weight, next_weight;
  const int32_t* labels;
};

template <class A>
static inline TargetRow<A> target_row(const CrossEntropyRows<A>& target, int64_t y) {
  const int64_t from = target.rows.offset[y];
  const bool single = target.rows.offset[y + 1] - from == 1;
  return {target.upsampled + target.rows.begin[y] * target.padded_width, single ? 0 : target.padded_width,
          target.rows.weight[from], single ? A(0) : target.rows.weight[from + 1], target.labels + y * target.width};
}

// Softmax of sixteen pixels before its division.
template <class A>
struct Exponentials {
  Block<A> top;       // the largest logit, all logits counted from class 0's
  Block<A> total;     // sum over all classes of exp(logit - top)
  Block<A> at_label;  // the label's logit
};

// e [K-1][16] becomes exp(logit - top) of the classes 1..K-1.
template <class A>
static inline Exponentials<A> exponentials(const CrossEntropyRows<A>& target, const TargetRow<A>& row, int64_t x,
                                           const Block<A>& label, A* e) {
  const int64_t plane = target.height * target.padded_width;
  const Block<A> upper = splat(target.scale * row.upper_weight), next = splat(target.scale * row.next_weight);
  Exponentials<A> result{splat(A(0)), splat(A(0)), splat(A(0))};
  for (int64_t k = 0; k < target.others; ++k) {
    const A* source = row.upper + k * plane + x;
    Block<A> z = upper * load(source);
    multiply_add(z, next, load(source + row.next));
    store(e + k * kBlock, z);
    result.top = maximum(z, result.top);
    result.at_label = where_equal(label, A(k + 1), z, result.at_label);
  }
  result.total = exp_nonpositive(splat(A(0)) - result.top);
  for (int64_t k = 0; k < target.others; ++k) {
    const Block<A> share = exp_nonpositive(load(e + k * kBlock) - result.top);
    store(e + k * kBlock, share);
    result.total = result.total + share;
  }
  return result;
}

template <class A>
static double loss_rows(const CrossEntropyRows<A>& target, int64_t first, int64_t last, A* scratch) {
  double loss = 0;
  for (int64_t y = first; y < last; ++y) {
    const TargetRow<A> row = target_row(target, y);
    Block<A> sums = splat(A(0));
    for (int64_t x = 0; x < target.width; x += kBlock) {
      const Block<A> label = labels_of<A>(row.labels + x, target.width - x);
      const Exponentials<A> e = exponentials(target, row, x, label, scratch);
      const Block<A> pixel_loss = (e.top - e.at_label) + logarithm(e.total);
      sums = sums + where_negative(label, splat(A(0)), pixel_loss);
    }
    loss += double(sum(sums));
  }
  return loss;
}

template <class A>
static void residual_rows(const CrossEntropyRows<A>& target, int64_t first, int64_t last, A factor, A* scratch,
                          A* to_row, A* to_next) {
  for (int64_t i = 0; i < target.others * target.padded_width; ++i) to_row[i] = to_next[i] = 0;
  for (int64_t y = first; y < last; ++y) {
    const TargetRow<A> row = target_row(target, y);
    const Block<A> here = splat(row.upper_weight), next = splat(row.next_weight);
    for (int64_t x = 0; x < target.width; x += kBlock) {
      const Block<A> label = labels_of<A>(row.labels + x, target.width - x);
      const Exponentials<A> e = exponentials(target, row, x, label, scratch);
      const Block<A> share = where_negative(label, splat(A(0)), splat(factor) / e.total);
      for (int64_t k = 0; k < target.others; ++k) {
        const Block<A> r =
            share * load(scratch + k * kBlock) - where_equal(label, A(k + 1), splat(factor), splat(A(0)));
        A *down = to_row + k * target.padded_width + x, *down_next = to_next + k * target.padded_width + x;
        store(down, load(down) + here * r);
        store(down_next, load(down_next) + next * r);
      }
    }
  }
}
