// What the host side of a CUDA operator needs besides common/*_arguments.h: the current stream, the device guard, and
// the choice of instantiation. The same host code runs in the emulator, where the tensors are on the CPU.
#pragma once

#include <algorithm>

#include "../common/backward_arguments.h"
#include "device.h"
#include "features.cuh"

#ifdef FEWSEG_EMULATED
#define FEWSEG_DISPATCH_KEY CPU
#else
#define FEWSEG_DISPATCH_KEY CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace fewseg {

// Makes the device of a tensor current while it lives, and knows torch's current stream there.
class OnDevice {
 public:
#ifdef FEWSEG_EMULATED
  explicit OnDevice(const Tensor&) {}
  Stream stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    // The macros that check such a call have other names in other versions of torch.
    const AOTITorchError error = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
    check(error == AOTI_TORCH_SUCCESS, "fewseg", "torch has no current CUDA stream");
    stream_ = static_cast<Stream>(stream);
  }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_ = nullptr;
#endif
};

// Launches unless there is nothing to do. What CUDA would refuse in its own words is refused in ours.
template <class... Parameters, class... Args>
void run(const OnDevice& device, void (*kernel)(Parameters...), const LaunchPlan& plan, Args... args) {
  if (plan.empty()) return;
  const int64_t tasks = std::max(plan.grid_y, plan.grid_z);
  check(tasks <= 65535, "fewseg", "the CUDA kernels take at most 65535 tasks in a call, got ", tasks);
  if (plan.shared_bytes > 48 * 1024) {
    const int64_t available = device_limits().shared_per_block;
    check(plan.shared_bytes <= available, "fewseg", "too many classes for this GPU: they take ", plan.shared_bytes,
          " bytes of shared memory, and a block has ", available);
  }
  launch(kernel, plan, device.stream(), static_cast<Parameters>(args)...);
}

template <bool value>
struct Flag {
  static constexpr bool kValue = value;
};
template <int value>
struct Number {
  static constexpr int kValue = value;
};

// f(Flag<channels_last>, Number<classes held in registers>): the instantiation for a layout and a number of classes.
template <class F>
void choose_kernel(bool channels_last, int64_t classes, const F& f) {
  const auto by_classes = [&](auto layout) {
    if (classes <= kFewClasses)
      f(layout, Number<kFewClasses>{});
    else
      f(layout, Number<kManyClasses>{});
  };
  channels_last ? by_classes(Flag<true>{}) : by_classes(Flag<false>{});
}

template <class S, class Map>
auto features_of(const Map& map) {
  return Features<S>{data<S>(map.tensor), map.channels, map.pixels, map.channel_stride(), map.pixel_stride()};
}

}  // namespace fewseg
