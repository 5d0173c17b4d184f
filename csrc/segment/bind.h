#pragma once

#include "common/bind.h"
#include "segment/segment.h"

namespace infoseg {

static void bind_segment(py::module_& module) {
  using S = SegmentArguments;
  bind(module, "segment", &segment, field("features", &S::features), field("G", &S::G), optional_field("g0", &S::g0),
       optional_field("target", &S::target), field("K", &S::K), field("rows", &S::rows), field("columns", &S::columns),
       optional_field("num_classes", &S::num_classes), field("temperature", &S::temperature),
       field("logits", &S::logits), optional_field("ignore_index", &S::ignore_index), field("threads", &S::threads),
       optional_field("labels", &S::labels), optional_field("counts", &S::counts));
}

}  // namespace infoseg
