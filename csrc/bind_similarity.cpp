// Python's way in to similarity.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "feature_map_argument.h"
#include "similarity.h"

namespace py = pybind11;
using namespace infoseg;

namespace {

void forward(int dtype, const FeatureMapArgument& features, std::int64_t G, std::int64_t g0, std::int64_t K,
             int threads, std::int64_t out, bool softmax, double temperature, const FeatureMapArgument& statistics,
             std::int64_t moments) {
  SimilarityArguments a;
  a.dtype = static_cast<DType>(dtype);
  a.features = feature_map(features);
  a.G = pointer(G);
  a.g0 = pointer(g0);
  a.K = K;
  a.threads = threads;
  a.out = pointer(out);
  a.softmax = softmax;
  a.statistics = feature_map(statistics);
  a.moments = pointer(moments);
  a.temperature = temperature;
  py::gil_scoped_release release;
  similarity_forward(a);
}

void backward(int dtype, const FeatureMapArgument& features, std::int64_t G, std::int64_t K, int threads,
              int grad_dtype, std::int64_t grad, std::int64_t probs, double temperature,
              const FeatureMapArgument& statistics, std::int64_t moments, const FeatureMapArgument& df, std::int64_t dG,
              std::int64_t dg0) {
  SimilarityArguments a;
  a.dtype = static_cast<DType>(dtype);
  a.features = feature_map(features);
  a.G = pointer(G);
  a.K = K;
  a.threads = threads;
  a.grad_dtype = static_cast<DType>(grad_dtype);
  a.grad = pointer(grad);
  a.probs = pointer(probs);
  a.softmax = probs != 0;
  a.statistics = feature_map(statistics);
  a.moments = pointer(moments);
  a.temperature = temperature;
  a.df = feature_map(df);
  a.dG = pointer(dG);
  a.dg0 = pointer(dg0);
  py::gil_scoped_release release;
  similarity_backward(a);
}

}  // namespace

void bind_similarity(py::module_& module) {
  module.def("similarity_forward", &forward);
  module.def("similarity_backward", &backward);
}
