// A case of the emulator's own tests: run by name (main.cpp), it prints its results, which must be the same in all
// thread orders, and throws where they are wrong.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../cuda/device.h"

namespace cases {

inline std::map<std::string, void (*)()>& all() {
  static std::map<std::string, void (*)()> cases;
  return cases;
}

struct Registered {
  Registered(const char* name, void (*run)()) { all()[name] = run; }
};

#define CASE(name)                                        \
  void name();                                            \
  const cases::Registered registered_##name(#name, name); \
  void name()

template <class T>
void expect_equal(const T& actual, const T& expected, const char* what) {
  if (actual == expected) return;
  std::ostringstream text;
  text << what << ": " << actual << " instead of " << expected;
  throw std::logic_error(text.str());
}

template <class T>
void print(const std::vector<T>& values) {
  for (const T& value : values) std::printf("%.9g ", double(value));
  std::printf("\n");
}

inline fewseg::LaunchPlan plan(int64_t blocks, int block, int64_t shared_bytes = 0, bool cooperative = false) {
  fewseg::LaunchPlan result;
  result.grid_x = blocks;
  result.block = block;
  result.shared_bytes = shared_bytes;
  result.cooperative = cooperative;
  return result;
}

template <class T>
int64_t shared_bytes(int64_t count) {
  return fewseg::SharedBytes().add<T>(count).total();
}

}  // namespace cases
