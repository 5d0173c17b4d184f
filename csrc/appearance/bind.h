#pragma once

#include "appearance/appearance.h"
#include "common/bind.h"

namespace infoseg {

static void bind_appearance(py::module_& module) {
  using A = AppearanceArguments;
  bind(module, "local_appearance", &local_appearance, field("images", &A::images), field("rows", &A::rows),
       field("columns", &A::columns), field("dark", &A::dark), field("flat", &A::flat), field("threads", &A::threads),
       field("out", &A::out));
  using S = StatisticsArguments;
  bind(module, "appearance_statistics", &appearance_statistics, field("y", &S::y), optional_field("valid", &S::valid),
       field("B", &S::B), field("d", &S::d), field("h", &S::h), field("w", &S::w), field("radius", &S::radius),
       field("threads", &S::threads), field("out", &S::out));
  using I = InformationArguments;
  bind(module, "information_of_moments", &information_of_moments, field("dtype", &I::dtype),
       field("moments", &I::moments), field("total", &I::total), field("K", &I::K), field("n", &I::n),
       field("resolution", &I::resolution), optional_field("gradient", &I::gradient));
}

}  // namespace infoseg
