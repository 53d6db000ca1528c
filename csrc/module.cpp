// The module Python imports: loading it registers the operators (schemas.cpp), and it has the launcher of Triton's kernels.
#include <Python.h>

#include "triton/launch.h"

PyMODINIT_FUNC PyInit__C(void) {
  static PyMethodDef methods[] = {
      {"launch", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(icd::launch)), METH_FASTCALL, nullptr},
      {nullptr, nullptr, 0, nullptr},
  };
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
