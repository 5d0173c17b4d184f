// Python's way in to mutual_information.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "feature_map_argument.h"
#include "mutual_information.h"

namespace py = pybind11;
using namespace infoseg;

namespace {

// (temperature, estimator, negatives, partners, balance)
using SettingsArgument = std::tuple<double, int, int, std::int64_t, double>;

double loss(int dtype, const FeatureMapArgument& features, std::int64_t G, std::int64_t g0, std::int64_t valid,
            std::int64_t K, const SettingsArgument& settings, int threads, double upstream,
            const FeatureMapArgument& df, std::int64_t dG, std::int64_t dg0) {
  LossArguments a;
  a.dtype = static_cast<DType>(dtype);
  a.features = feature_map(features);
  a.G = pointer(G);
  a.g0 = pointer(g0);
  a.valid = static_cast<const std::uint8_t*>(pointer(valid));
  a.K = K;
  a.settings = {std::get<0>(settings), static_cast<Estimator>(std::get<1>(settings)),
                static_cast<Negatives>(std::get<2>(settings)), std::get<3>(settings), std::get<4>(settings)};
  a.threads = threads;
  a.upstream = upstream;
  a.df = feature_map(df);
  a.dG = pointer(dG);
  a.dg0 = pointer(dg0);
  py::gil_scoped_release release;
  return mutual_information_loss(a);
}

}  // namespace

void bind_mutual_information(py::module_& module) { module.def("mutual_information_loss", &loss); }
