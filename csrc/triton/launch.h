// Launches kernels that Triton compiled, from Python.
#pragma once

#include <Python.h>

namespace icd {

// launch(plan, addresses, numbers, stream) -> int: what the driver answers, 0 for success.
//
// plan: bytes that icd_kernels/backends/triton/native.py packed, as `LaunchPlan` reads them. addresses: list of the
// tensors' addresses. numbers: tuple of floats. stream: the CUDA stream.
PyObject* launch(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

}  // namespace icd
