// fewseg::_planted: one mistake of each kind, in the library built with sanitizers only. The tests call it first, to
// know that the library in the process is instrumented and that what it reports ends the process.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

int64_t planted(const std::string& mistake) {
  if (mistake == "read out of bounds") {
    std::vector<int> numbers(3, 1);
    volatile size_t index = 3;
    return numbers.data()[index];
  }
  if (mistake == "overflow") {
    volatile int64_t number = std::numeric_limits<int64_t>::max();
    return number + 1;
  }
  if (mistake == "race") {
    int number = 0;
    std::thread first([&] { ++number; }), second([&] { ++number; });
    first.join();
    second.join();
    return number;
  }
  throw std::runtime_error("no such mistake: " + mistake);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fewseg, m) {
  m.def("_planted(str mistake) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fewseg, CompositeExplicitAutograd, m) {
  m.impl("_planted", TORCH_BOX(&planted));
}
