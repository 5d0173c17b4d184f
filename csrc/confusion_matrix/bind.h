#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "confusion_matrix/confusion_matrix.h"

namespace py = pybind11;

namespace infoseg {

static Labels labels_of(const py::array& array, const char* name) {
  const char kind = array.dtype().kind();
  const auto size = array.itemsize();
  const bool native = array.dtype().byteorder() == '=' || size == 1;
  if (!(array.flags() & py::array::c_style)) throw std::invalid_argument(std::string(name) + " is not contiguous");
  if (native && kind == 'u' && size == 1) return {array.data(), LabelType::kUint8};
  if (native && kind == 'i' && size == 2) return {array.data(), LabelType::kInt16};
  if (native && kind == 'i' && size == 4) return {array.data(), LabelType::kInt32};
  if (native && kind == 'i' && size == 8) return {array.data(), LabelType::kInt64};
  throw py::type_error(std::string(name) + " is " + std::string(py::str(py::object(array.dtype()))) +
                       "; uint8, int16, int32 and int64 are accepted");
}

// Adds to `counts` in place; on an error they are as before.
static void count_labels(const py::array& pred, const py::array& target,
                         py::array_t<std::int64_t, py::array::c_style>& counts,
                         std::optional<std::int64_t> ignore_index, int threads) {
  if (pred.size() != target.size()) throw std::invalid_argument("pred and target differ in size");
  if (counts.ndim() != 2) throw std::invalid_argument("counts must have 2 dimensions");
  const Labels pred_labels = labels_of(pred, "pred"), target_labels = labels_of(target, "target");
  const std::int64_t num_clusters = counts.shape(0), num_classes = counts.shape(1), size = pred.size();
  std::int64_t* out = counts.mutable_data();
  OutOfRange bad;
  {
    py::gil_scoped_release release;
    bad = count_confusion(pred_labels, target_labels, size, num_clusters, num_classes, ignore_index.has_value(),
                          ignore_index.value_or(0), threads, out);
  }
  if (bad.place >= 0) {
    throw std::invalid_argument(std::string(bad.in_target ? "target" : "pred") + " holds " + std::to_string(bad.value) +
                                " at flat index " + std::to_string(bad.place) + "; 0 to " +
                                std::to_string((bad.in_target ? num_classes : num_clusters) - 1) + " are accepted");
  }
}

static void bind_confusion_matrix(py::module_& module) {
  module.def("count_confusion", &count_labels, py::arg("pred").noconvert(), py::arg("target").noconvert(),
             py::arg("counts").noconvert(), py::arg("ignore_index").none(true), py::arg("threads"));
}

}  // namespace infoseg
