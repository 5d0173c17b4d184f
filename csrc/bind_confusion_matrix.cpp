// Python's way in to confusion_matrix.h.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "confusion_matrix.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Counts = py::array_t<std::int64_t, py::array::c_style>;

Counts confusion_matrix(const Bytes& pred, const Bytes& target, std::int64_t num_clusters, std::int64_t num_classes,
                        std::optional<std::int64_t> ignore_index) {
  if (pred.size() != target.size()) throw std::invalid_argument("pred and target differ in size");
  Counts counts({num_clusters, num_classes});
  std::int64_t* out = counts.mutable_data();
  std::fill(out, out + num_clusters * num_classes, 0);
  infoseg::OutOfRange bad;
  {
    py::gil_scoped_release release;
    bad = infoseg::count_confusion(pred.data(), target.data(), pred.size(), num_clusters, num_classes,
                                   ignore_index.has_value(), ignore_index.value_or(0), out);
  }
  if (bad.place >= 0) {
    throw std::invalid_argument(std::string(bad.in_target ? "target" : "pred") + " holds " + std::to_string(bad.value) +
                                " at flat index " + std::to_string(bad.place) + "; values below " +
                                std::to_string(bad.in_target ? num_classes : num_clusters) + " are accepted");
  }
  return counts;
}

}  // namespace

void bind_confusion_matrix(py::module_& module) {
  module.def("confusion_matrix", &confusion_matrix, py::arg("pred"), py::arg("target"), py::arg("num_clusters"),
             py::arg("num_classes"), py::arg("ignore_index").none(true));
}
