// The Python module infoseg_fast._C. Each subject binds its own functions in bind_<subject>.cpp; everything behind
// them takes pointers, sizes and strides, and knows neither Python nor torch.
#include <pybind11/pybind11.h>

void bind_appearance(pybind11::module_& module);
void bind_confusion_matrix(pybind11::module_& module);
void bind_linear_sum_assignment(pybind11::module_& module);
void bind_cpu(pybind11::module_& module);
void bind_mutual_information(pybind11::module_& module);
void bind_refinement(pybind11::module_& module);
void bind_similarity(pybind11::module_& module);
void bind_segmentation(pybind11::module_& module);

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of infoseg_fast for CPUs.";
  bind_appearance(module);
  bind_confusion_matrix(module);
  bind_linear_sum_assignment(module);
  bind_cpu(module);
  bind_mutual_information(module);
  bind_refinement(module);
  bind_similarity(module);
  bind_segmentation(module);
}
