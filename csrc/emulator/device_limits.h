// The pretended device: FEWSEG_EMULATOR_DEVICE, and what a launch may ask of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../cuda/launch_plan.h"

namespace fewseg::emulator {

inline DeviceLimits read_device_limits() {
  // Few multiprocessors, so that small test sizes already make blocks wait for a free one.
  int64_t multiprocessors = 4, shared_per_block = 64 * 1024, shared_per_multiprocessor = 100 * 1024;
  int64_t registers_per_multiprocessor = 64 * 1024, threads_per_multiprocessor = 2048;
  const char* settings = std::getenv("FEWSEG_EMULATOR_DEVICE");
  std::istringstream stream(settings ? settings : "");
  for (std::string setting; std::getline(stream, setting, ',');) {
    const std::size_t equals = setting.find('=');
    const std::string key = setting.substr(0, equals);
    const int64_t value = equals == std::string::npos ? 0 : std::atoll(setting.c_str() + equals + 1);
    int64_t* member = key == "multiprocessors"                ? &multiprocessors
                      : key == "shared_per_block"             ? &shared_per_block
                      : key == "shared_per_multiprocessor"    ? &shared_per_multiprocessor
                      : key == "registers_per_multiprocessor" ? &registers_per_multiprocessor
                      : key == "threads_per_multiprocessor"   ? &threads_per_multiprocessor
                                                              : nullptr;
    if (!member || value <= 0)
      throw std::runtime_error("emulator: FEWSEG_EMULATOR_DEVICE has no meaning for \"" + setting + "\"");
    *member = value;
  }
  return {int(multiprocessors), shared_per_block, shared_per_multiprocessor, int(registers_per_multiprocessor),
          int(threads_per_multiprocessor)};
}

// Throws where a GPU would refuse the launch, too.
inline void check_plan(const LaunchPlan& plan, const DeviceLimits& limits) {
  const auto refuse = [](const std::string& why) { throw std::runtime_error("emulator: launch refused: " + why); };
  if (plan.block < 1 || plan.block > 1024 || plan.block % 32 != 0)
    refuse("a block of " + std::to_string(plan.block) + " threads is not a multiple of 32 up to 1024");
  if (plan.grid_x < 1 || plan.grid_y < 1 || plan.grid_z < 1)
    refuse("the grid of " + std::to_string(plan.grid_x) + " x " + std::to_string(plan.grid_y) + " x " +
           std::to_string(plan.grid_z) + " blocks is empty");
  if (plan.grid_x > INT32_MAX || plan.grid_y > 65535 || plan.grid_z > 65535)
    refuse("the grid of " + std::to_string(plan.grid_x) + " x " + std::to_string(plan.grid_y) + " x " +
           std::to_string(plan.grid_z) + " blocks is larger than 2147483647 x 65535 x 65535");
  if (plan.shared_bytes < 0 || plan.shared_bytes > limits.shared_per_block)
    refuse(std::to_string(plan.shared_bytes) + " bytes of shared memory, but a block has at most " +
           std::to_string(limits.shared_per_block));
  if (!plan.cooperative) return;

  // Since compute capability 8.0 every block costs a kilobyte of shared memory more than it asks for.
  const int64_t by_shared = limits.shared_per_multiprocessor / (plan.shared_bytes + 1024);
  const int64_t by_threads = limits.threads_per_multiprocessor / plan.block;
  const int64_t resident = limits.multiprocessors * std::min({by_shared, by_threads, int64_t(32)});
  const double blocks = double(plan.grid_x) * double(plan.grid_y) * double(plan.grid_z);
  if (blocks > double(resident))
    refuse("cooperative, but only " + std::to_string(resident) + " of its " + std::to_string(int64_t(blocks)) +
           " blocks fit onto the device at once");
}

}  // namespace fewseg::emulator
