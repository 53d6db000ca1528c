// csrc/cuda/device.h and the operators' registration, for CPU tensors as if they lay on a device.

#include <cstdlib>
#include <cstring>

#include "../../csrc/cuda/stages.h"
#include "cuda_on_host.h"

namespace icd::cuda {

namespace {

int64_t processors = 4;  // few, so that small cases have too few tiles and too many items
int64_t launch_count = 0, clear_count = 0;

}  // namespace

DeviceGuard::DeviceGuard(int32_t) {}

DeviceGuard::~DeviceGuard() {}

Stream current_stream(int32_t) { return nullptr; }

int64_t multiprocessors(int32_t) { return processors; }

double float64_cost(int32_t) { return 2; }

void clear(void* data, size_t bytes, Stream) {
  ++clear_count;
  std::memset(data, 0, bytes);
}

void check_launch(int error, const char* kernel) {
  ++launch_count;
  check<std::runtime_error>(error == 0, kernel);
}

namespace {

// Launches and clears since the last call.
std::tuple<int64_t, int64_t> launches() {
  const std::tuple<int64_t, int64_t> counts = {launch_count, clear_count};
  launch_count = clear_count = 0;
  return counts;
}

void set_processors(int64_t count) { processors = count; }

// -2: in order, -1: reversed, otherwise random from this seed
void set_schedule(int64_t seed) {
  using host_cuda::Schedule;
  host_cuda::set_schedule(
      seed == -2 ? Schedule::in_order : seed == -1 ? Schedule::reversed : Schedule::random, static_cast<uint64_t>(seed));
}

}  // namespace
}  // namespace icd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(icd_kernels_emulated, library) {
  library.def("launches() -> (int kernels, int clears)");
  library.def("set_processors(int count) -> ()");
  library.def("set_schedule(int seed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(icd_kernels_emulated, CPU, library) { icd::Operators<icd::cuda::Stages>::add_to(library); }

STABLE_TORCH_LIBRARY_IMPL(icd_kernels_emulated, CompositeExplicitAutograd, library) {
  library.impl("launches", TORCH_BOX(&icd::cuda::launches));
  library.impl("set_processors", TORCH_BOX(&icd::cuda::set_processors));
  library.impl("set_schedule", TORCH_BOX(&icd::cuda::set_schedule));
}
