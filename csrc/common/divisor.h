#pragma once

namespace fewseg {

// What the summed cross-entropy of a task is divided by: 1, its own valid pixels, or those of the batch (at least 1).
enum class Divisor { one, task, batch };

}  // namespace fewseg
