// Python's way in to refinement.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "feature_map_argument.h"
#include "refinement.h"

namespace py = pybind11;
using namespace infoseg;

namespace {

const float* floats(std::int64_t address) { return static_cast<const float*>(pointer(address)); }

// shape: B, K, c, h, w, rows, columns.
RefinementArguments arguments(std::int64_t prior, std::int64_t around, std::int64_t colour, std::int64_t residual,
                              std::int64_t log_scale, const std::array<std::int64_t, 7>& shape, float floor,
                              int threads) {
  RefinementArguments a;
  a.prior = floats(prior);
  a.around = floats(around);
  a.colour = floats(colour);
  a.residual = floats(residual);
  a.log_scale = floats(log_scale);
  a.B = shape[0];
  a.K = shape[1];
  a.c = shape[2];
  a.h = shape[3];
  a.w = shape[4];
  a.rows = shape[5];
  a.columns = shape[6];
  a.floor = floor;
  a.threads = threads;
  return a;
}

}  // namespace

void bind_refinement(py::module_& module) {
  using Address = std::int64_t;
  using Shape = std::array<std::int64_t, 7>;
  module.def("refined_labels", [](Address prior, Address around, Address colour, Address residual, Address log_scale,
                                  const Shape& shape, float floor, int threads, Address out) {
    RefinementArguments a = arguments(prior, around, colour, residual, log_scale, shape, floor, threads);
    a.labels = static_cast<std::uint8_t*>(pointer(out));
    py::gil_scoped_release release;
    refined_labels(a);
  });
  module.def("refined_probs", [](Address prior, Address around, Address colour, Address residual, Address log_scale,
                                 const Shape& shape, float floor, int threads, Address out) {
    RefinementArguments a = arguments(prior, around, colour, residual, log_scale, shape, floor, threads);
    a.probs = static_cast<float*>(pointer(out));
    py::gil_scoped_release release;
    refined_probs(a);
  });
}
