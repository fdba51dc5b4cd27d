// Bodies of the Monte-Carlo operators (mc_average, mc_uncertainty), one set per instruction set. A: accumulator type.
#pragma once

#include <cstdint>

#include "../common/bands.h"

namespace fewseg {

// A row of the result, seen through the two rows of logits that it lies between, both upsampled along x already:
// `here` and `next` are [L][K][stride], the stride a multiple of 16. The row is here_share * here + next_share * next;
// next is not looked at where its share is 0.
template <class A>
struct SampleRow {
  const A *here, *next;
  A here_share, next_share;
  int64_t samples, classes, width, stride;
};

// Where the results of a row go, those of a class at [k * plane]; null for what is not wanted.
template <class A>
struct UncertaintyRow {
  A* probabilities;
  A* variance;
  A* entropy;
  A* mutual_information;
  int64_t plane;
};

template <class A>
struct MonteCarloBodiesOf {
  // One row of the upsampling along x, or of its adjoint: output [columns.outputs].
  void (*resize_row)(const A* row, Bands<A> columns, A* output);

  // scratch [L][K][16].
  void (*average_row)(const SampleRow<A>& row, const UncertaintyRow<A>& to, A* scratch);

  // Adds the gradient of the logits to to_here and to_next [L][K][stride], given that of the mean probabilities
  // [k * plane]; scratch [K][16].
  void (*gradient_row)(const SampleRow<A>& row, const A* gradient, int64_t plane, A* scratch, A* to_here, A* to_next);
};

struct MonteCarloBodies {
  MonteCarloBodiesOf<float> f32;
  MonteCarloBodiesOf<double> f64;

  const MonteCarloBodiesOf<float>& of(float) const { return f32; }
  const MonteCarloBodiesOf<double>& of(double) const { return f64; }
};

}  // namespace fewseg
