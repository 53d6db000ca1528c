// Triton's own launcher takes every argument of a kernel as a Python object, some seventy for each of ours. Most of them
// stay the same from one launch to the next: here they lie packed, and only addresses and a few numbers come from Python.
#include "launch.h"

#include <cstdint>
#include <cstring>

namespace icd {
namespace {

// cuLaunchKernel; its address comes from Python, so that the extension needs no CUDA to be built or loaded.
using Entry = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra);

// One parameter of the kernel: an address plus `value` bytes, one of the numbers, or `value` itself.
struct Place {
  enum Kind : int32_t { kValue, kAddress, kNumber };
  int32_t kind;
  int32_t index;
  int64_t value;
};

struct LaunchPlan {
  uint64_t entry;
  uint64_t function;
  uint32_t programs;
  uint32_t threads;
  uint32_t shared;
  uint32_t places;
};

constexpr int kMostPlaces = 256;
// Behind ours a kernel has pointers to Triton's scratch memory, two in 3.6 to 3.9, which stay null. The driver reads as many as
// the kernel has.
constexpr int kScratchPointers = 4;

// A parameter's eight bytes; a 32-bit one is their lower half, which comes first. False where a Python error is set.
bool fill(const Place& place, PyObject* addresses, PyObject* numbers, uint64_t& parameter) {
  if (place.kind == Place::kValue) {
    parameter = static_cast<uint64_t>(place.value);
    return true;
  }
  if (place.kind == Place::kNumber) {
    PyObject* number = PyTuple_GetItem(numbers, place.index);
    const double value = number == nullptr ? 0.0 : PyFloat_AsDouble(number);
    std::memcpy(&parameter, &value, sizeof value);
    return PyErr_Occurred() == nullptr;
  }
  PyObject* address = PyList_GetItem(addresses, place.index);
  if (address == nullptr) return false;
  parameter = PyLong_AsUnsignedLongLong(address) + static_cast<uint64_t>(place.value);
  return PyErr_Occurred() == nullptr;
}

}  // namespace

PyObject* launch(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4) return PyErr_Format(PyExc_TypeError, "launch takes 4 arguments, got %zd", count);
  char* bytes = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(arguments[0], &bytes, &size) != 0) return nullptr;
  LaunchPlan plan;
  if (size < static_cast<Py_ssize_t>(sizeof plan)) return PyErr_Format(PyExc_ValueError, "plan is cut short");
  std::memcpy(&plan, bytes, sizeof plan);
  if (plan.places > kMostPlaces || size != static_cast<Py_ssize_t>(sizeof plan + plan.places * sizeof(Place))) {
    return PyErr_Format(PyExc_ValueError, "plan must hold %u places, at most %d", plan.places, kMostPlaces);
  }
  uint64_t values[kMostPlaces + kScratchPointers] = {};
  void* parameters[kMostPlaces + kScratchPointers];
  for (uint32_t n = 0; n < plan.places + kScratchPointers; ++n) parameters[n] = &values[n];
  for (uint32_t n = 0; n < plan.places; ++n) {
    Place place;
    std::memcpy(&place, bytes + sizeof plan + n * sizeof place, sizeof place);
    if (!fill(place, arguments[1], arguments[2], values[n])) return nullptr;
  }
  void* stream = PyLong_AsVoidPtr(arguments[3]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const auto entry = reinterpret_cast<Entry>(plan.entry);
  PyThreadState* state = PyEval_SaveThread();  // a full queue makes the driver wait
  const int answer = entry(reinterpret_cast<void*>(plan.function), plan.programs, 1, 1, plan.threads, 1, 1,
                           plan.shared, stream, parameters, nullptr);
  PyEval_RestoreThread(state);
  return PyLong_FromLong(answer);
}

}  // namespace icd
