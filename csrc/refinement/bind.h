#pragma once

#include "common/bind.h"
#include "refinement/refinement.h"

namespace infoseg {

static void bind_refinement(py::module_& module) {
  using R = RefinementArguments;
  const auto bind_one = [&](const char* name, void (*run)(const R&), auto out) {
    bind(module, name, run, field("prior", &R::prior), field("around", &R::around), field("colour", &R::colour),
         field("residual", &R::residual), field("log_scale", &R::log_scale), field("B", &R::B), field("K", &R::K),
         field("c", &R::c), field("h", &R::h), field("w", &R::w), field("rows", &R::rows),
         field("columns", &R::columns), field("floor", &R::floor), field("threads", &R::threads), out);
  };
  bind_one("refined_labels", &refined_labels, field("labels", &R::labels));
  bind_one("refined_probs", &refined_probs, field("probs", &R::probs));
}

}  // namespace infoseg
