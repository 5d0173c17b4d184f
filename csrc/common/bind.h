// Binds kernels, functions of one struct, to Python. Every bound member of the struct is a named
// argument. A tensor comes as its address, a feature map as (address, dtype, B, C, h, w, stride_b,
// stride_c, stride_h, stride_w). Python has checked shapes, dtypes and devices before.
//
// The names are interned once and looked up in the keywords of a call. With py::arg a call of 11
// arguments took 1.2 to 2.5 us longer, a tenth of an op on a tiny tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "common/feature_map.h"

namespace py = pybind11;

namespace infoseg {

// Integers, booleans and enumerations.
template <class T>
static inline void read_argument(PyObject* from, T& to) {
  to = static_cast<T>(PyLong_AsLongLong(from));
}
template <class T>
static inline void read_argument(PyObject* from, T*& to) {
  to = reinterpret_cast<T*>(PyLong_AsLongLong(from));
}
static inline void read_argument(PyObject* from, double& to) { to = PyFloat_AsDouble(from); }
static inline void read_argument(PyObject* from, float& to) { to = static_cast<float>(PyFloat_AsDouble(from)); }
static inline void read_argument(PyObject* from, FeatureMap& to) {
  if (!PyTuple_Check(from) || PyTuple_GET_SIZE(from) != 10)
    throw py::type_error("a map must be a tuple of 10 integers");
  int64_t x[10];
  for (int i = 0; i < 10; ++i) x[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(from, i));
  to = {reinterpret_cast<void*>(x[0]), static_cast<DType>(x[1]), x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9]};
}

// A named argument that fills one member.
template <class Arguments, class T>
struct Field {
  const char* text;
  T Arguments::* member;
  bool required;
  PyObject* name;

  // Returns 1 when the argument is given. None is the same as not given.
  Py_ssize_t read(PyObject* keywords, Arguments& to) const {
    PyObject* value = PyDict_GetItemWithError(keywords, name);
    if (value && value != Py_None)
      read_argument(value, to.*member);
    else if (required)
      throw py::type_error(std::string("missing argument ") + text);
    return value != nullptr;
  }
};

template <class Arguments, class T>
static Field<Arguments, T> field(const char* name, T Arguments::* member) {
  return {name, member, true, PyUnicode_InternFromString(name)};
}

// A field that keeps the member's default when it is not given.
template <class Arguments, class T>
static Field<Arguments, T> optional_field(const char* name, T Arguments::* member) {
  return {name, member, false, PyUnicode_InternFromString(name)};
}

template <class Result, class Arguments, class... T>
static void bind(py::module_& module, const char* name, Result (*run)(const Arguments&),
                 Field<Arguments, T>... fields) {
  std::string doc = "Named arguments:";
  ((doc += std::string(" ") + fields.text), ...);
  const auto call = [=](const py::kwargs& keywords) {
    Arguments a;
    const Py_ssize_t known = (fields.read(keywords.ptr(), a) + ...);
    if (PyErr_Occurred()) throw py::error_already_set();
    if (known != PyDict_GET_SIZE(keywords.ptr())) throw py::type_error("unknown argument. " + doc);
    py::gil_scoped_release release;
    return run(a);
  };
  module.def(name, call, doc.c_str());
}

}  // namespace infoseg
