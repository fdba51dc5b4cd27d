// Words for what the emulator reports.
#pragma once

#include <cstdio>
#include <cstring>
#include <string>

#include "emulator.h"

namespace fewseg::emulator {

inline bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

inline std::string text(Index3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

inline std::string text(Operation operation, Site site) {
  static constexpr const char* kNames[] = {
      "__syncthreads()", "__syncthreads_or()", "__syncthreads_and()", "__syncthreads_count()", "grid_sync()",
      "__syncwarp()",    "__shfl_sync()",      "__shfl_up_sync()",    "__shfl_down_sync()",    "__shfl_xor_sync()",
      "__ballot_sync()", "__any_sync()",       "__all_sync()"};
  const char* slash = std::strrchr(site.file, '/');
  return std::string(kNames[int(operation)]) + " in " + (slash ? slash + 1 : site.file) + ":" +
         std::to_string(site.line);
}

inline std::string hexadecimal(unsigned mask) {
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", mask);
  return digits;
}

}  // namespace fewseg::emulator
