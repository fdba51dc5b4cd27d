// Checks of what a kernel was given. The Python layer has checked the same with better words; these keep a caller that
// comes straight through the dispatcher from reading out of bounds.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fewseg {

template <class... Parts>
[[noreturn]] inline void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());  // the stable ABI hands this to Python as a RuntimeError
}

template <class... Parts>
inline void check(bool ok, const char* op, const Parts&... parts) {
  if (!ok) fail(op, parts...);
}

}  // namespace fewseg
