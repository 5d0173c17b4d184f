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

LossArguments arguments(int dtype, const FeatureMapArgument& features, std::int64_t G, std::int64_t g0,
                        std::int64_t valid, std::int64_t K, const SettingsArgument& settings, int threads) {
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
  return a;
}

double forward(int dtype, const FeatureMapArgument& features, std::int64_t G, std::int64_t g0, std::int64_t valid,
               std::int64_t K, const SettingsArgument& settings, int threads, bool wants_gradient,
               std::int64_t coefficients, const FeatureMapArgument& df, std::int64_t dG, std::int64_t dg0) {
  LossArguments a = arguments(dtype, features, G, g0, valid, K, settings, threads);
  a.wants_gradient = wants_gradient;
  a.coefficients = pointer(coefficients);
  a.df = feature_map(df);
  a.dG = pointer(dG);
  a.dg0 = pointer(dg0);
  py::gil_scoped_release release;
  return loss_forward(a);
}

void backward(int dtype, const FeatureMapArgument& features, std::int64_t G, std::int64_t K,
              const SettingsArgument& settings, int threads, std::int64_t coefficients, double upstream,
              const FeatureMapArgument& df, std::int64_t dG, std::int64_t dg0) {
  LossArguments a = arguments(dtype, features, G, 0, 0, K, settings, threads);
  a.wants_gradient = true;
  a.coefficients = pointer(coefficients);
  a.upstream = upstream;
  a.df = feature_map(df);
  a.dG = pointer(dG);
  a.dg0 = pointer(dg0);
  py::gil_scoped_release release;
  loss_backward(a);
}

bool keeps_gradients(std::int64_t B, std::int64_t C, std::int64_t K, const SettingsArgument& settings) {
  const LossSettings s{std::get<0>(settings), static_cast<Estimator>(std::get<1>(settings)),
                       static_cast<Negatives>(std::get<2>(settings)), std::get<3>(settings), std::get<4>(settings)};
  return loss_keeps(B, C, K, s) == Keeps::gradients;
}

}  // namespace

void bind_mutual_information(py::module_& module) {
  module.attr("LOSS_TILE") = kLossTile;
  module.def("loss_forward", &forward);
  module.def("loss_backward", &backward);
  module.def("loss_keeps_gradients", &keeps_gradients);
}
