// csrc/cuda/device.h and the operators' registration, for CPU tensors as if they lay on a device.

#include <torch/library.h>

#include <cstdlib>
#include <cstring>

#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/launcher.h"
#include "cuda_on_host.h"

namespace icd::cuda {

namespace {

int64_t processors = 4;  // few, so that small cases have too few tiles and too many items
int64_t launches = 0, clears = 0;

}  // namespace

Stream current_stream(c10::DeviceIndex) { return nullptr; }

int64_t multiprocessors(c10::DeviceIndex) { return processors; }

double float64_cost(c10::DeviceIndex) { return 2; }

void clear(void* data, size_t bytes, Stream) {
  ++clears;
  std::memset(data, 0, bytes);
}

void check_launch(int error, const char* kernel) {
  ++launches;
  TORCH_CHECK(error == 0, kernel);
}

}  // namespace icd::cuda

TORCH_LIBRARY_IMPL(icd_kernels_emulated, CPU, library) {
  library.impl("region_features", icd::cuda::region_features);
  library.impl("region_features_backward", icd::cuda::region_features_backward);
  library.impl("region_logits", icd::cuda::region_logits);
  library.impl("region_logits_backward", icd::cuda::region_logits_backward);
  library.impl("gram_kl", icd::cuda::gram_kl);
  library.impl("gram_kl_backward", icd::cuda::gram_kl_backward);
  library.impl("icd_loss", icd::cuda::icd_loss);
  library.impl("icd_loss_backward", icd::cuda::icd_loss_backward);
}

TORCH_LIBRARY_FRAGMENT(icd_kernels_emulated, library) {
  // Launches and clears since the last call.
  library.def("launches() -> int[]", []() {
    const std::vector<int64_t> counts = {icd::cuda::launches, icd::cuda::clears};
    icd::cuda::launches = icd::cuda::clears = 0;
    return counts;
  });
  library.def("set_processors(int count) -> ()", [](int64_t count) { icd::cuda::processors = count; });
  // -2: in order, -1: reversed, otherwise random from this seed
  library.def("set_schedule(int seed) -> ()", [](int64_t seed) {
    using host_cuda::Schedule;
    host_cuda::set_schedule(
        seed == -2 ? Schedule::in_order : seed == -1 ? Schedule::reversed : Schedule::random, static_cast<uint64_t>(seed));
  });
}


