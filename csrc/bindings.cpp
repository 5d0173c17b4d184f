// The Python module infoseg_fast._C. The bindings are headers of this one source, since pybind11's
// own headers take most of the time to compile. The code behind them knows neither Python nor
// torch.
#include "appearance/bind.h"
#include "common/bind_cpu.h"
#include "confusion_matrix/bind.h"
#include "linear_sum_assignment/bind.h"
#include "mutual_information_loss/bind.h"
#include "refined_labels/bind.h"
#include "segment/bind.h"
#include "similarity/bind.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of infoseg_fast for CPUs.";
  infoseg::bind_appearance(module);
  infoseg::bind_confusion_matrix(module);
  infoseg::bind_cpu(module);
  infoseg::bind_linear_sum_assignment(module);
  infoseg::bind_mutual_information_loss(module);
  infoseg::bind_refined_labels(module);
  infoseg::bind_segment(module);
  infoseg::bind_similarity(module);
}
