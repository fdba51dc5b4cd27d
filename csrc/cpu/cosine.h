// What cosine_logits and cosine_cross_entropy share on the CPU: the cosines of a batch, and their backward.
#pragma once

#include <cmath>
#include <vector>

#include "../common/backward_arguments.h"
#include "instruction_set.h"
#include "parallel.h"

namespace fewseg {

// p_k and 1/|P_k| of contiguous prototypes [B,K,C]; zero where |P_k| <= 1e-12.
template <class A>
struct UnitPrototypes {
  std::vector<A> unit, inverse_norm;

  UnitPrototypes(const A* prototypes, int64_t count, int64_t channels) : unit(count * channels), inverse_norm(count) {
    for (int64_t k = 0; k < count; ++k) {
      double square = 0;
      for (int64_t c = 0; c < channels; ++c)
        square += double(prototypes[k * channels + c]) * double(prototypes[k * channels + c]);
      inverse_norm[k] = square <= 1e-24 ? A(0) : A(std::sqrt(square) / square);  // NaN beyond 1e154
      for (int64_t c = 0; c < channels; ++c) unit[k * channels + c] = prototypes[k * channels + c] * inverse_norm[k];
    }
  }
};

template <class S>
FeaturePlanes<S> planes_of(const FeatureMap& map, int64_t task) {
  return {data<S>(map.tensor) + task * map.task_size(), map.channels, map.pixels, map.channel_stride(),
          map.pixel_stride()};
}

// cosine [B,K,N] and inverse_norm [B,N] (1/|q|) of all tasks.
template <class S>
void cosines(const FeatureMap& map, const Accumulator<S>* unit_prototypes, int64_t classes,
             Accumulator<S>* inverse_norm, Accumulator<S>* cosine) {
  const auto& body = kernel_table().cosine.of(S{});
  constexpr int64_t kUnit = 64;  // pixels
  const int64_t N = map.pixels, units = (N + kUnit - 1) / kUnit;
  parallel(map.batch * units, map.batch * map.task_size() * (classes + 1), [&](int64_t begin, int64_t end) {
    // The units of a task in one call: the longer the run of pixels, the better the memory keeps up.
    for (int64_t i = begin; i < end;) {
      const int64_t task = i / units, first = i % units, last = std::min(units, first + end - i);
      body.cosines(planes_of<S>(map, task), unit_prototypes + task * classes * map.channels, classes, first * kUnit,
                   std::min(last * kUnit, N), inverse_norm + task * N, cosine + task * classes * N);
      i += last - first;
    }
  });
}

// From dLoss/dc [B,K,N], which is overwritten: d_features, and d_prototypes [B,K,C]; each may be null.
//   dq = (sum_k w_k p_k - (sum_k w_k c_k) q^) / |q|,   dP_k = (H_k - (p_k . H_k) p_k) / |P_k|,  H_k = sum_x w_k(x)
//   q^(x)
template <class S>
void cosines_backward(const FeatureMap& map, const UnitPrototypes<Accumulator<S>>& prototypes, int64_t classes,
                      const Accumulator<S>* inverse_norm, const Accumulator<S>* cosine, Accumulator<S>* d_cosine,
                      S* d_features, Accumulator<S>* d_prototypes) {
  using A = Accumulator<S>;
  const auto& body = kernel_table().cosine.of(S{});
  const int64_t N = map.pixels, C = map.channels, vectors = classes * C;
  const int64_t rows = map.channels_last ? N : C, unit = map.channels_last ? kChunk : kTile;
  const int64_t units = (rows + unit - 1) / unit;
  std::vector<A> own(map.batch * N);
  parallel(map.batch, map.batch * classes * N, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      for (int64_t k = 0; k < classes; ++k)
        for (int64_t x = 0; x < N; ++x) {
          const int64_t i = (task * classes + k) * N + x;
          const A inverse = inverse_norm[task * N + x];
          d_cosine[i] *= inverse;
          own[task * N + x] -= d_cosine[i] * cosine[i] * inverse;
        }
  });
  // Channels-last, every unit has sums of its own over its pixels; they are added in order.
  std::vector<A> partials(map.channels_last && d_prototypes ? map.batch * units * vectors : 0);
  parallel(map.batch * units, 2 * map.batch * classes * map.task_size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / units, first = i % units * unit;
      A* sums = nullptr;
      if (d_prototypes) sums = map.channels_last ? partials.data() + i * vectors : d_prototypes + task * vectors;
      body.backward(planes_of<S>(map, task), prototypes.unit.data() + task * vectors, d_cosine + task * classes * N,
                    own.data() + task * N, classes, first, std::min(first + unit, rows), sums,
                    d_features ? d_features + task * map.task_size() : nullptr);
    }
  });
  const auto& reduce = kernel_table().inner_opt.of(S{}).reduce;
  for (int64_t task = 0; task < map.batch && !partials.empty(); ++task)
    reduce(partials.data() + task * units * vectors, units, vectors, d_prototypes + task * vectors);
  if (!d_prototypes) return;
  for (int64_t k = 0; k < map.batch * classes; ++k) {
    const A* p = prototypes.unit.data() + k * C;
    A* h = d_prototypes + k * C;
    double along = 0;
    for (int64_t c = 0; c < C; ++c) along += double(p[c]) * double(h[c]);
    for (int64_t c = 0; c < C; ++c) h[c] = A(double(h[c]) - along * double(p[c])) * prototypes.inverse_norm[k];
  }
}

}  // namespace fewseg
