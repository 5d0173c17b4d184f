#pragma once

#include "common/bind.h"
#include "refined_labels/refined_labels.h"

namespace infoseg {

static void bind_refined_labels(py::module_& module) {
  using R = RefinedLabelsArguments;
  bind(module, "refined_labels", &refined_labels, field("prior", &R::prior), field("around", &R::around),
       field("colour", &R::colour), field("residual", &R::residual), field("log_scale", &R::log_scale),
       field("B", &R::B), field("K", &R::K), field("c", &R::c), field("h", &R::h), field("w", &R::w),
       field("rows", &R::rows), field("columns", &R::columns), field("floor", &R::floor), field("threads", &R::threads),
       field("labels", &R::labels));
}

}  // namespace infoseg
