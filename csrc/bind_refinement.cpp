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
void labels(std::int64_t prior, std::int64_t around, std::int64_t colour, std::int64_t residual, std::int64_t log_scale,
            const std::array<std::int64_t, 7>& shape, float floor, int threads, std::int64_t out) {
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
  a.labels = static_cast<std::uint8_t*>(pointer(out));
  py::gil_scoped_release release;
  refined_labels(a);
}

}  // namespace

void bind_refinement(py::module_& module) { module.def("refined_labels", &labels); }
