// What the op files need of torch's stable ABI: dtype dispatch, memory layout of feature maps, typed pointers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "storage.h"

namespace fewseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
struct ScalarTypeOf;
template <>
struct ScalarTypeOf<float> {
  static constexpr ScalarType value = ScalarType::Float;
};
template <>
struct ScalarTypeOf<double> {
  static constexpr ScalarType value = ScalarType::Double;
};
template <>
struct ScalarTypeOf<BFloat16> {
  static constexpr ScalarType value = ScalarType::BFloat16;
};
template <>
struct ScalarTypeOf<Half> {
  static constexpr ScalarType value = ScalarType::Half;
};

inline ScalarType accumulator_type(ScalarType storage) {
  return storage == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the storage type that `type` names: dispatch(t, op, [&](auto s) { using S = decltype(s); }).
template <class F>
inline void dispatch_floating(ScalarType type, const char* op, const char* argument, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Half{});
    default:
      fail(op, argument, " must be float32, float64, bfloat16 or float16");
  }
}

template <class T>
inline const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
inline T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls f with a typed pointer to contiguous labels.
template <class F>
inline void dispatch_labels(const char* op, const Tensor& target, const F& f) {
  switch (target.scalar_type()) {
    case ScalarType::Long:
      return f(data<int64_t>(target));
    case ScalarType::Int:
      return f(data<int32_t>(target));
    case ScalarType::Byte:
      return f(data<uint8_t>(target));
    default:
      fail(op, "target must be int64, int32 or uint8");
  }
}

inline Tensor with_dtype(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The numbers of a tensor as the loops read them: contiguous and of that type; a copy only where they are not yet.
inline Tensor plain(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() == type) return as_contiguous(tensor);
  // One copy: `to` alone keeps what it can of the strides, and a second one would have to follow.
  return torch::stable::to(tensor, type, std::nullopt, std::nullopt, std::nullopt, /*non_blocking=*/false,
                           /*copy=*/false, torch::headeronly::MemoryFormat::Contiguous);
}

// The result's dtype: that of the features, or of what stands beside them where that is wider (check_dtype_beside).
inline ScalarType result_type(const Tensor& features, const Tensor& beside) {
  const ScalarType accumulator = accumulator_type(features.scalar_type());
  return beside.scalar_type() == accumulator ? accumulator : features.scalar_type();
}

inline int32_t shim_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    default:
      return aoti_torch_dtype_float32();
  }
}

// A new tensor on the device of `like`. Straight to the allocation: torch::stable::new_empty goes through the
// dispatcher by name, which for a small call takes longer than all arithmetic.
inline Tensor make(const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                   ScalarType type) {
  int32_t device_type, device_index;
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), shim_dtype(type),
                                                  device_type, device_index, &tensor));
  return Tensor(tensor);
}

inline Tensor make(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    if (__builtin_mul_overflow(stride, std::max<int64_t>(sizes[i], 1), &stride))
      fail("fewseg", "a result of more than 2^63 numbers");
  }
  return make(like, sizes, strides, type);
}

// A [B,C,H,W] map as the kernels read it: NCHW or channels-last; anything else is made contiguous first.
struct FeatureMap {
  Tensor tensor;
  int64_t batch, channels, height, width, pixels;
  bool channels_last;

  explicit FeatureMap(const Tensor& features)
      : tensor(features),
        batch(features.size(0)),
        channels(features.size(1)),
        height(features.size(2)),
        width(features.size(3)),
        pixels(height * width),
        channels_last(false) {
    if (features.is_contiguous()) return;
    // A size of 1 leaves its stride free, so the strides are compared only where they are used.
    const bool rows = width == 1 || features.stride(3) == channels;
    const bool columns = height == 1 || features.stride(2) == width * channels;
    const bool tasks = batch == 1 || features.stride(0) == pixels * channels;
    channels_last = rows && columns && tasks && (channels == 1 || features.stride(1) == 1);
    if (!channels_last) tensor = torch::stable::contiguous(features);
  }

  int64_t task_size() const { return channels * pixels; }
  int64_t channel_stride() const { return channels_last ? 1 : pixels; }
  int64_t pixel_stride() const { return channels_last ? channels : 1; }

  // An uninitialised map of the same sizes, dtype and layout.
  Tensor empty_like() const {
    const std::vector<int64_t> sizes{batch, channels, height, width};
    if (!channels_last) return make(tensor, sizes, tensor.scalar_type());
    return make(tensor, sizes, {channels * pixels, 1, width * channels, channels}, tensor.scalar_type());
  }
};

}  // namespace fewseg
