// What the launcher needs of a device, apart from its kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace icd::cuda {

// Makes a device the current one until the end of its life.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void* guard_ = nullptr;
};

// The stream that PyTorch currently uses on the current device.
Stream current_stream(int32_t device);

int64_t multiprocessors(int32_t device);

// How many float32 instructions it does in the time of one of float64.
double float64_cost(int32_t device);

// Fills with zeros, in the stream's order.
void clear(void* data, size_t bytes, Stream stream);

// Raises if a launch was refused; `error` is its cudaError_t.
void check_launch(int error, const char* kernel);

}  // namespace icd::cuda
