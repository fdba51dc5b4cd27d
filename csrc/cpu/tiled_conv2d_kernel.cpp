// CPU kernels of fewseg::tiled_conv2d: what z adds to torch's convolution of the features. What the numbers mean is in
// csrc/ops/tiled_conv2d.cpp, the sweeps over the result are in tiled_conv2d_kernel.inl.
#include "../common/tiled_conv2d.h"

#include <algorithm>

#include "instruction_set.h"
#include "parallel.h"

namespace fewseg {
namespace {

constexpr const char* kOp = "fewseg::tiled_conv2d";

// class_begin of every class, and the end.
std::vector<int64_t> begins(const TapAxis& axis) {
  std::vector<int64_t> result(axis.classes() + 1);
  for (size_t c = 0; c < result.size(); ++c) result[c] = axis.class_begin(int64_t(c));
  return result;
}

// The classes of an axis as the loops want them: where each begins, and which of its taps lie inside.
struct Classes {
  std::vector<int64_t> begin, first_tap, last_tap;

  explicit Classes(const TapAxis& axis) : begin(begins(axis)), first_tap(count()), last_tap(count()) {
    for (int64_t c = 0; c < count(); ++c) {
      // A class without outputs has no taps.
      const bool used = begin[c] < begin[c + 1];
      first_tap[c] = used ? axis.first_tap(begin[c]) : 0;
      last_tap[c] = used ? axis.last_tap(begin[c]) : 0;
    }
  }
  int64_t count() const { return int64_t(begin.size()) - 1; }
};

// The weight's taps of z [O][kh][kw][D] as a channels-last map of O kh kw pixels: what the bodies of masked_avg_pool
// multiply with.
template <class A>
FeaturePlanes<A> as_pixels(const Tensor& z_taps, const TiledConv2dSizes& sizes) {
  return {data<A>(z_taps), sizes.D, sizes.O * sizes.taps(), 1, sizes.D};
}

constexpr int64_t kUnit = 64;  // pixels or channels of that map that a thread takes at a time

// sums[n][row class][column class][o] = bias[o] + the sum over the taps inside of z_n . weight tap.
template <class A>
std::vector<A> z_table(const TiledConv2dSizes& sizes, const Classes& rows, const Classes& columns, const Tensor& z,
                       const Tensor& z_taps, const A* bias) {
  const auto& product = kernel_table().masked_avg_pool.of(A{});
  const FeaturePlanes<A> pixels = as_pixels<A>(z_taps, sizes);
  const int64_t N = sizes.samples(), taps = sizes.taps(), units = (pixels.pixels + kUnit - 1) / kUnit;
  std::vector<A> by_tap(N * pixels.pixels);
  parallel(sizes.B * units, N * pixels.pixels * sizes.D, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / units, first = i % units * kUnit;
      product.project(pixels, data<A>(z) + task * sizes.L * sizes.D, sizes.L, first,
                      std::min(first + kUnit, pixels.pixels), by_tap.data() + task * sizes.L * pixels.pixels);
    }
  });
  const int64_t entries = rows.count() * columns.count();
  std::vector<A> table(N * entries * sizes.O);
  parallel(N * entries, N * pixels.pixels * entries, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / entries, r = i % entries / columns.count(), c = i % columns.count();
      for (int64_t o = 0; o < sizes.O; ++o) {
        const A* tap = by_tap.data() + (n * sizes.O + o) * taps;
        A total = bias ? bias[o] : A(0);
        for (int64_t y = rows.first_tap[r]; y < rows.last_tap[r]; ++y)
          for (int64_t x = columns.first_tap[c]; x < columns.last_tap[c]; ++x) total += tap[y * sizes.columns.taps + x];
        table[i * sizes.O + o] = total;
      }
    }
  });
  return table;
}

// result[n] = base[task of n] + the table's entry of each pixel's class.
template <class S>
void add_table(const TiledConv2dSizes& sizes, const Classes& rows, const Classes& columns,
               const std::vector<Accumulator<S>>& table, const S* base, bool channels_last, S* result) {
  using A = Accumulator<S>;
  const auto& body = kernel_table().tiled_conv2d.of(S{});
  const int64_t O = sizes.O, w = sizes.w, plane = sizes.h * w, volume = O * plane, N = sizes.samples();
  const auto entry = [&](int64_t n, int64_t r, int64_t c) {
    return table.data() + ((n * rows.count() + r) * columns.count() + c) * O;
  };
  if (channels_last) {
    // A run of pixels of one class: their O channels get the same O numbers.
    parallel(N * sizes.h, N * volume, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / sizes.h, y = i % sizes.h, r = sizes.rows.class_of(y);
        for (int64_t c = 0; c < columns.count(); ++c) {
          const int64_t at = (y * w + columns.begin[c]) * O;
          body.add_rows(base + n / sizes.L * volume + at, entry(n, r, c), O, columns.begin[c + 1] - columns.begin[c],
                        result + n * volume + at);
        }
      }
    });
  } else {
    // A run of rows of one class: they get the same row of w numbers.
    parallel(N * O, N * volume, [&](int64_t begin, int64_t end) {
      std::vector<A> addend(w);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / O, o = i % O;
        for (int64_t r = 0; r < rows.count(); ++r) {
          for (int64_t c = 0; c < columns.count(); ++c)
            std::fill(addend.begin() + columns.begin[c], addend.begin() + columns.begin[c + 1], entry(n, r, c)[o]);
          const int64_t at = o * plane + rows.begin[r] * w;
          body.add_rows(base + n / sizes.L * volume + at, addend.data(), w, rows.begin[r + 1] - rows.begin[r],
                        result + n * volume + at);
        }
      }
    });
  }
}

Tensor tiled_conv2d(const Tensor& features, const Tensor& z, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  const TiledConv2dSizes sizes = check_tiled_conv2d(kOp, features, z, weight, bias, padding, dilation);
  const ScalarType type = tiled_conv2d_type(features, z, weight, bias), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const Tensor base = convolve(map.tensor, weight, sizes, type, map.channels_last);
  const Tensor z_taps = taps_of_z(weight, sizes, accumulator), plain_z = plain(z, accumulator);
  const Classes rows(sizes.rows), columns(sizes.columns);
  Tensor result = make_map(features, sizes.samples(), sizes, type, map.channels_last);
  dispatch_floating(type, kOp, "features", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const Tensor plain_bias = bias ? plain(*bias, accumulator) : plain_z;
    const auto table = z_table<A>(sizes, rows, columns, plain_z, z_taps, bias ? data<A>(plain_bias) : nullptr);
    add_table<S>(sizes, rows, columns, table, data<S>(base), map.channels_last, mutable_data<S>(result));
  });
  return torch::stable::view(result, {sizes.B, sizes.L, sizes.O, sizes.h, sizes.w});
}

// --- backward ------------------------------------------------------------------------------------------------------

// The gradient summed over the pixels of each class: [n][row class][column class][o], as the table.
template <class S>
std::vector<Accumulator<S>> sum_classes(const TiledConv2dSizes& sizes, const Classes& rows, const Classes& columns,
                                        const S* gradient, bool channels_last) {
  using A = Accumulator<S>;
  const auto& body = kernel_table().tiled_conv2d.of(S{});
  const int64_t O = sizes.O, h = sizes.h, w = sizes.w, count = columns.count() * O, N = sizes.samples();
  std::vector<A> of_rows(N * h * count);  // [n][y][column class][o]
  parallel(N * h, N * O * h * w, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      A* to = of_rows.data() + i * count;
      if (channels_last) {
        for (int64_t c = 0; c < columns.count(); ++c)
          body.sum_rows(gradient + (i * w + columns.begin[c]) * O, O, columns.begin[c + 1] - columns.begin[c],
                        to + c * O);
      } else {
        const S* row = gradient + (i / h * O * h + i % h) * w;
        for (int64_t o = 0; o < O; ++o)
          body.sum_runs(row + o * h * w, columns.begin.data(), columns.count(), to + o, O);
      }
    }
  });
  std::vector<A> sums(N * rows.count() * count);
  const auto& plain_body = kernel_table().tiled_conv2d.of(A{});
  parallel(N * rows.count(), N * h * count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / rows.count(), r = i % rows.count();
      plain_body.sum_rows(of_rows.data() + (n * h + rows.begin[r]) * count, count, rows.begin[r + 1] - rows.begin[r],
                          sums.data() + i * count);
    }
  });
  return sums;
}

// The same, summed over the classes that have a tap inside: [n][o][tap].
template <class A>
std::vector<A> sum_taps(const TiledConv2dSizes& sizes, const Classes& rows, const Classes& columns,
                        const std::vector<A>& sums) {
  const int64_t O = sizes.O, entries = rows.count() * columns.count(), taps = sizes.taps();
  std::vector<A> by_tap(sizes.samples() * O * taps);
  parallel(sizes.samples(), sizes.samples() * O * taps * entries, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t r = 0; r < rows.count(); ++r)
        for (int64_t c = 0; c < columns.count(); ++c)
          for (int64_t o = 0; o < O; ++o) {
            const A value = sums[(n * entries + r * columns.count() + c) * O + o];
            A* tap = by_tap.data() + (n * O + o) * taps;
            for (int64_t y = rows.first_tap[r]; y < rows.last_tap[r]; ++y)
              for (int64_t x = columns.first_tap[c]; x < columns.last_tap[c]; ++x)
                tap[y * sizes.columns.taps + x] += value;
          }
  });
  return by_tap;
}

// d_z[n] = sum over output channels and taps of by_tap times the weight's tap.
template <class A>
void gradient_of_z(const TiledConv2dSizes& sizes, const std::vector<A>& by_tap, const Tensor& z_taps, A* d_z) {
  const auto& product = kernel_table().masked_avg_pool.of(A{});
  const FeaturePlanes<A> pixels = as_pixels<A>(z_taps, sizes);
  const int64_t unit = product.pool_unit, units = (sizes.D + unit - 1) / unit;
  parallel(sizes.B * units, sizes.samples() * pixels.pixels * sizes.D, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / units, first = i % units * unit;
      product.pool(pixels, by_tap.data() + task * sizes.L * pixels.pixels, sizes.L, first,
                   std::min(first + unit, sizes.D), d_z + task * sizes.L * sizes.D);
    }
  });
}

// d_taps [O][kh][kw][D] = sum_n by_tap[n] z_n.
template <class A>
void gradient_of_taps(const TiledConv2dSizes& sizes, const std::vector<A>& by_tap, const A* z, A* d_taps) {
  const auto& product = kernel_table().masked_avg_pool.of(A{});
  const int64_t pixels = sizes.O * sizes.taps();
  parallel(pixels, sizes.samples() * pixels * sizes.D, [&](int64_t begin, int64_t end) {
    product.spread(by_tap.data(), z, sizes.samples(), {nullptr, sizes.D, pixels, 1, sizes.D}, begin, end, d_taps);
  });
}

template <class A>
void gradient_of_bias(const TiledConv2dSizes& sizes, const std::vector<A>& sums, A* d_bias) {
  for (int64_t o = 0; o < sizes.O; ++o) {
    double total = 0;
    for (size_t i = size_t(o); i < sums.size(); i += size_t(sizes.O)) total += double(sums[i]);
    d_bias[o] = A(total);
  }
}

// d_base [B,O,h,w]: the gradient summed over the samples.
template <class S>
void sum_over_samples(const TiledConv2dSizes& sizes, const S* gradient, S* d_base) {
  const auto& body = kernel_table().tiled_conv2d.of(S{});
  constexpr int64_t kPart = 4096;
  const int64_t volume = sizes.O * sizes.h * sizes.w, parts = (volume + kPart - 1) / kPart;
  parallel(sizes.B * parts, sizes.samples() * volume, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / parts, first = i % parts * kPart;
      body.sum_samples(gradient + task * sizes.L * volume + first, volume, sizes.L, std::min(kPart, volume - first),
                       d_base + task * volume + first);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tiled_conv2d_backward(const Tensor& gradient, const Tensor& features,
                                                                 const Tensor& z, const Tensor& weight,
                                                                 const std::vector<int64_t>& padding,
                                                                 const std::vector<int64_t>& dilation,
                                                                 bool needs_features, bool needs_z, bool needs_weight,
                                                                 bool needs_bias) {
  const TiledConv2dSizes sizes = check_tiled_conv2d(kOp, features, z, weight, std::nullopt, padding, dilation);
  check_sizes(kOp, "gradient", gradient, features, {sizes.B, sizes.L, sizes.O, sizes.h, sizes.w});
  const ScalarType type = gradient.scalar_type(), accumulator = accumulator_type(type);
  const FeatureMap map(features);
  const FeatureMap d_result(torch::stable::reshape(gradient, {sizes.samples(), sizes.O, sizes.h, sizes.w}));
  const Tensor z_taps = taps_of_z(weight, sizes, accumulator), plain_z = plain(z, accumulator);

  Tensor d_features = needs_features ? map.empty_like() : make(features, {0}, features.scalar_type());
  Tensor d_z = make(features, {needs_z ? sizes.B : 0, sizes.L, sizes.D}, accumulator);
  Tensor d_weight = make(features, {0}, weight.scalar_type());
  Tensor d_bias = make(features, {needs_bias ? sizes.O : 0}, accumulator);
  Tensor d_taps = make(features, {sizes.O, sizes.rows.taps, sizes.columns.taps, sizes.D}, accumulator);
  Tensor d_base = make_map(features, sizes.B, sizes, type, d_result.channels_last);
  dispatch_floating(type, kOp, "gradient", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulator<S>;
    const S* g = data<S>(d_result.tensor);
    if (needs_z || needs_weight || needs_bias) {
      const Classes rows(sizes.rows), columns(sizes.columns);
      const auto sums = sum_classes<S>(sizes, rows, columns, g, d_result.channels_last);
      const auto by_tap = sum_taps<A>(sizes, rows, columns, sums);
      if (needs_z) gradient_of_z<A>(sizes, by_tap, z_taps, mutable_data<A>(d_z));
      if (needs_weight) gradient_of_taps<A>(sizes, by_tap, data<A>(plain_z), mutable_data<A>(d_taps));
      if (needs_bias) gradient_of_bias<A>(sizes, sums, mutable_data<A>(d_bias));
    }
    if (needs_features || needs_weight) sum_over_samples<S>(sizes, g, mutable_data<S>(d_base));
  });
  if (sizes.B > 0 && (needs_features || needs_weight)) {
    const auto [of_features, of_weight] =
        convolve_backward(d_base, map.tensor, weight, sizes, needs_features, needs_weight);
    if (needs_features) d_features = in_layout(with_dtype(of_features, features.scalar_type()), map.channels_last);
    if (needs_weight) d_weight = join_weight(weight, sizes, of_weight, d_taps);
  } else if (needs_weight) {
    d_weight = join_weight(weight, sizes, d_taps, d_taps);
  }
  return {d_features, d_z, d_weight, d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fewseg, CPU, m) {
  m.impl("tiled_conv2d", TORCH_BOX(&tiled_conv2d));
  m.impl("_tiled_conv2d_backward", TORCH_BOX(&tiled_conv2d_backward));
}

}  // namespace fewseg
