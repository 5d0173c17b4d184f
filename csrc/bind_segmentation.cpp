// Python's way in to segmentation.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "feature_map_argument.h"
#include "segmentation.h"

namespace py = pybind11;
using namespace infoseg;

namespace {

std::int64_t segment_(int dtype, const FeatureMapArgument& features, std::int64_t G, std::int64_t g0, std::int64_t K,
                      double temperature, bool logits, std::int64_t rows, std::int64_t columns, int threads,
                      std::int64_t labels, std::int64_t target, std::int64_t num_classes, int ignore_index,
                      std::int64_t counts) {
  SegmentationArguments a;
  a.dtype = static_cast<DType>(dtype);
  a.features = feature_map(features);
  a.G = pointer(G);
  a.g0 = pointer(g0);
  a.K = K;
  a.temperature = temperature;
  a.logits = logits;
  a.rows = rows;
  a.columns = columns;
  a.threads = threads;
  a.labels = static_cast<std::uint8_t*>(pointer(labels));
  a.target = static_cast<const std::uint8_t*>(pointer(target));
  a.num_classes = num_classes;
  a.ignore_index = ignore_index;
  a.counts = static_cast<std::int64_t*>(pointer(counts));
  py::gil_scoped_release release;
  return segment(a);
}

}  // namespace

void bind_segmentation(py::module_& module) { module.def("segment", &segment_); }
