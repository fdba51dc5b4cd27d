// What mc_average and mc_uncertainty share on the CPU. The logits are upsampled in two steps: along x for two rows of
// logits at a time, along y one row of the result at a time, in registers.
#pragma once

#include <algorithm>

#include "../common/bilinear.h"
#include "../common/monte_carlo_arguments.h"
#include "instruction_set.h"
#include "parallel.h"

namespace fewseg {

// The rows i and i + 1 of all samples and classes of a task, upsampled along x. Going on to the next i reuses one.
template <class A>
class UpsampledRows {
 public:
  UpsampledRows(const MonteCarloSizes& sizes, const A* logits, Bands<A> columns)
      : sizes_(sizes),
        logits_(logits),
        columns_(columns),
        stride_((sizes.w + 15) / 16 * 16),
        here_(size()),
        next_(size()) {}

  int64_t size() const { return sizes_.samples * sizes_.classes * stride_; }

  // The row y of the result of task i / H, which lies between the rows i % H and i % H + 1.
  SampleRow<A> look(int64_t i, const Bands<A>& rows, int64_t y) {
    if (held_ != i) {
      if (held_ == i - 1 && i % sizes_.H != 0 && next_held_)
        here_.swap(next_);
      else
        fill(i, here_);
      held_ = i;
      next_held_ = i % sizes_.H + 1 < sizes_.H;
      if (next_held_) fill(i + 1, next_);
    }
    const int64_t from = rows.offset[y];
    const A next_share = rows.offset[y + 1] - from > 1 ? rows.weight[from + 1] : A(0);
    return {here_.data(),   next_.data(),   rows.weight[from], next_share,
            sizes_.samples, sizes_.classes, sizes_.w,          stride_};
  }

 private:
  void fill(int64_t i, std::vector<A>& rows) const {
    const auto& body = kernel_table().monte_carlo.of(A{});
    const int64_t planes = sizes_.samples * sizes_.classes, task = i / sizes_.H, row = i % sizes_.H;
    for (int64_t plane = 0; plane < planes; ++plane)
      body.resize_row(logits_ + ((task * planes + plane) * sizes_.H + row) * sizes_.W, columns_,
                      rows.data() + plane * stride_);
  }

  const MonteCarloSizes& sizes_;
  const A* logits_;
  Bands<A> columns_;
  int64_t stride_;
  std::vector<A> here_, next_;
  int64_t held_ = -1;
  bool next_held_ = false;
};

// Calls f(i, first, last) for every row i % H of the logits of task i / H: the rows first..last of the result lie
// between it and the next. `make` gives each thread what f wants of its own.
template <class A, class Make, class F>
void each_row(const MonteCarloSizes& sizes, const Bands<A>& rows, const Make& make, const F& f) {
  const int64_t work = sizes.tasks * sizes.samples * sizes.classes * sizes.h * sizes.w * 16;
  parallel(sizes.tasks * sizes.H, work, [&](int64_t begin, int64_t end) {
    auto own = make();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t* first = std::lower_bound(rows.begin, rows.begin + sizes.h, i % sizes.H);
      const int64_t* last = std::upper_bound(rows.begin, rows.begin + sizes.h, i % sizes.H);
      f(own, i, first - rows.begin, last - rows.begin);
    }
  });
}

// Where the results go: probabilities and variance [B,K,h,w], the others [B,h,w]; all but the first null for
// mc_average.
template <class A>
struct MonteCarloResults {
  A *probabilities, *variance, *entropy, *mutual_information;
};

template <class A>
void average_samples(const MonteCarloSizes& sizes, const A* logits, const MonteCarloResults<A>& to) {
  const auto& body = kernel_table().monte_carlo.of(A{});
  const BilinearResize<A> resize(sizes.H, sizes.W, sizes.h, sizes.w, /*transposed=*/false);
  const Bands<A> rows = resize.rows.bands();
  struct Own {
    UpsampledRows<A> upsampled;
    std::vector<A> scratch;
  };
  const auto make = [&] {
    return Own{UpsampledRows<A>(sizes, logits, resize.columns.bands()),
               std::vector<A>(sizes.samples * sizes.classes * 16)};
  };
  each_row(sizes, rows, make, [&](Own& own, int64_t i, int64_t first, int64_t last) {
    const int64_t task = i / sizes.H, plane = sizes.h * sizes.w;
    for (int64_t y = first; y < last; ++y) {
      const int64_t of_class = task * sizes.classes * plane + y * sizes.w, of_task = task * plane + y * sizes.w;
      UncertaintyRow<A> row{to.probabilities + of_class, nullptr, nullptr, nullptr, plane};
      if (to.entropy) {
        row.variance = to.variance + of_class;
        row.entropy = to.entropy + of_task;
        row.mutual_information = to.mutual_information + of_task;
      }
      body.average_row(own.upsampled.look(i, rows, y), row, own.scratch.data());
    }
  });
}

// d_logits [B,L,K,H,W] from the gradient of the mean probabilities [B,K,h,w].
template <class A>
void average_samples_backward(const MonteCarloSizes& sizes, const A* logits, const A* gradient, A* d_logits) {
  const auto& body = kernel_table().monte_carlo.of(A{});
  const BilinearResize<A> up(sizes.H, sizes.W, sizes.h, sizes.w, /*transposed=*/false);
  const BilinearResize<A> down(sizes.H, sizes.W, sizes.h, sizes.w, /*transposed=*/true);
  const Bands<A> rows = up.rows.bands();
  const int64_t planes = sizes.samples * sizes.classes, plane = sizes.H * sizes.W;
  // Every row of the result adds to two rows of logits. What a row i gives to row i + 1 is kept apart, so that sums
  // have one order whichever thread takes the row.
  std::vector<A> to_next(sizes.tasks * planes * plane);
  struct Own {
    UpsampledRows<A> upsampled;
    std::vector<A> scratch, here, next;
  };
  const auto make = [&] {
    UpsampledRows<A> upsampled(sizes, logits, up.columns.bands());
    const int64_t size = upsampled.size();
    return Own{std::move(upsampled), std::vector<A>(sizes.classes * 16), std::vector<A>(size), std::vector<A>(size)};
  };
  each_row(sizes, rows, make, [&](Own& own, int64_t i, int64_t first, int64_t last) {
    const int64_t task = i / sizes.H, row = i % sizes.H, stride = own.upsampled.size() / planes;
    std::fill(own.here.begin(), own.here.end(), A(0));
    std::fill(own.next.begin(), own.next.end(), A(0));
    for (int64_t y = first; y < last; ++y)
      body.gradient_row(own.upsampled.look(i, rows, y), gradient + (task * sizes.classes * sizes.h + y) * sizes.w,
                        sizes.h * sizes.w, own.scratch.data(), own.here.data(), own.next.data());
    for (int64_t p = 0; p < planes; ++p) {
      const int64_t at = ((task * planes + p) * sizes.H + row) * sizes.W;
      body.resize_row(own.here.data() + p * stride, down.columns.bands(), d_logits + at);
      if (row + 1 < sizes.H)
        body.resize_row(own.next.data() + p * stride, down.columns.bands(), to_next.data() + at + sizes.W);
    }
  });
  parallel(sizes.tasks * planes, sizes.tasks * planes * plane, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * plane; i < end * plane; ++i) d_logits[i] += to_next[i];
  });
}

// The host side of both backward operators.
inline Tensor monte_carlo_backward(const char* op, const Tensor& gradient, const Tensor& logits) {
  check(gradient.dim() == 4, op, "gradient must be [B,K,h,w]");
  const MonteCarloSizes sizes(op, logits, std::vector<int64_t>{gradient.size(2), gradient.size(3)});
  check_sizes(op, "gradient", gradient, logits, {sizes.tasks, sizes.classes, sizes.h, sizes.w});
  const ScalarType type = accumulator_type(logits.scalar_type());
  const Tensor plain_logits = plain(logits, type);
  const Tensor plain_gradient = plain(gradient, type);
  Tensor d_logits = make(logits, {sizes.tasks, sizes.samples, sizes.classes, sizes.H, sizes.W}, type);
  dispatch_floating(type, op, "logits", [&](auto storage) {
    using A = Accumulator<decltype(storage)>;
    average_samples_backward(sizes, data<A>(plain_logits), data<A>(plain_gradient), mutable_data<A>(d_logits));
  });
  return with_dtype(d_logits, logits.scalar_type());
}

}  // namespace fewseg
