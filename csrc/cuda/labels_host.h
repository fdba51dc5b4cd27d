// Host side of labels.cuh: a batch's labels converted, and each task's weight, without waiting for the GPU.
#pragma once

#include "host.h"
#include "labels.cuh"

namespace fewseg {

struct DeviceLabels {
  Tensor classes;  // int32, -1 where ignored
  Tensor counts;   // int32 [tasks][2]: valid, wrong

  DeviceLabels(const OnDevice& device, const char* op, const Tensor& target, int64_t count, int64_t ignore_index) {
    const int64_t tasks = target.size(0), pixels = target.size(1) * target.size(2);
    classes = make(target, {tasks, pixels}, ScalarType::Int);
    counts = torch::stable::new_zeros(target, std::vector<int64_t>{tasks, 2}, ScalarType::Int);
    const LaunchPlan plan{divide_up(pixels, kThreads), tasks, 1, kThreads, SharedBytes().add<int>(32).total()};
    const auto convert = [&](const auto* values) {
      using Label = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
      run(device, convert_labels_kernel<Label>, plan, values, pixels, count, ignore_index,
          mutable_data<int32_t>(classes), mutable_data<int>(counts));
    };
    dispatch_labels(op, target, convert);
  }

  // factor / divisor per task, NaN for a task with a wrong label.
  template <class A>
  Tensor weights(const OnDevice& device, double factor, Divisor divisor) const {
    const int64_t tasks = counts.size(0);
    Tensor result = make(counts, {tasks}, ScalarTypeOf<A>::value);
    run(device, task_weights_kernel<A>, plan_elements(tasks), data<int>(counts), tasks, factor, divisor,
        mutable_data<A>(result));
    return result;
  }
};

}  // namespace fewseg
