// What the launcher needs of a device, apart from its kernels.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace icd::cuda {

// The stream that PyTorch currently uses on the current device.
Stream current_stream(c10::DeviceIndex device);

int64_t multiprocessors(c10::DeviceIndex device);

// How many float32 instructions it does in the time of one of float64.
double float64_cost(c10::DeviceIndex device);

// Fills with zeros, in the stream's order.
void clear(void* data, size_t bytes, Stream stream);

// Raises if a launch was refused; `error` is its cudaError_t.
void check_launch(int error, const char* kernel);

}  // namespace icd::cuda
