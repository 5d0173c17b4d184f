// Python's way in to appearance.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "appearance.h"
#include "feature_map_argument.h"

namespace py = pybind11;
using namespace infoseg;

namespace {

void local(const FeatureMapArgument& images, std::int64_t rows, std::int64_t columns, float dark, float flat, int threads,
           std::int64_t out) {
  AppearanceArguments a;
  a.images = feature_map(images);
  a.rows = rows;
  a.columns = columns;
  a.dark = dark;
  a.flat = flat;
  a.threads = threads;
  a.out = static_cast<float*>(pointer(out));
  py::gil_scoped_release release;
  local_appearance(a);
}

void statistics(std::int64_t y, std::int64_t valid, const std::array<std::int64_t, 4>& shape, std::int64_t radius,
                int threads, std::int64_t out) {
  StatisticsArguments a;
  a.y = static_cast<const float*>(pointer(y));
  a.valid = static_cast<const std::uint8_t*>(pointer(valid));
  a.B = shape[0];
  a.d = shape[1];
  a.h = shape[2];
  a.w = shape[3];
  a.radius = radius;
  a.threads = threads;
  a.out = static_cast<float*>(pointer(out));
  py::gil_scoped_release release;
  appearance_statistics(a);
}

double information(int dtype, std::int64_t moments, std::int64_t total, std::int64_t K, std::int64_t n, double resolution,
                   std::int64_t gradient) {
  InformationArguments a;
  a.dtype = static_cast<DType>(dtype);
  a.moments = pointer(moments);
  a.total = pointer(total);
  a.K = K;
  a.n = n;
  a.resolution = resolution;
  a.gradient = pointer(gradient);
  return information_of_moments(a);
}

}  // namespace

void bind_appearance(py::module_& module) {
  module.def("local_appearance", &local);
  module.def("appearance_statistics", &statistics);
  module.def("information_of_moments", &information);
}
