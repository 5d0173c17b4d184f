#pragma once

#include "common/bind.h"
#include "mutual_information_loss/mutual_information_loss.h"

namespace infoseg {

static void bind_mutual_information_loss(py::module_& module) {
  using L = LossArguments;
  bind(module, "mutual_information_loss", &mutual_information_loss, field("features", &L::features), field("G", &L::G),
       optional_field("g0", &L::g0), optional_field("valid", &L::valid), field("K", &L::K),
       field("temperature", &L::temperature), field("estimator", &L::estimator), field("negatives", &L::negatives),
       field("partners", &L::partners), field("balance", &L::balance), field("threads", &L::threads),
       field("upstream", &L::upstream), optional_field("df", &L::df), optional_field("dG", &L::dG),
       optional_field("dg0", &L::dg0));
}

}  // namespace infoseg
