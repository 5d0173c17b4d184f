#pragma once

#include "common/bind.h"
#include "similarity/similarity.h"

namespace infoseg {

static void bind_similarity(py::module_& module) {
  using S = SimilarityArguments;
  bind(module, "similarity_forward", &similarity_forward, field("features", &S::features), field("G", &S::G),
       optional_field("g0", &S::g0), optional_field("statistics", &S::statistics), field("K", &S::K),
       field("softmax", &S::softmax), field("temperature", &S::temperature), field("threads", &S::threads),
       optional_field("out", &S::out), optional_field("moments", &S::moments));
  bind(module, "similarity_backward", &similarity_backward, field("features", &S::features), field("G", &S::G),
       optional_field("statistics", &S::statistics), optional_field("probs", &S::probs),
       optional_field("grad_dtype", &S::grad_dtype), optional_field("grad", &S::grad),
       optional_field("moments", &S::moments), field("K", &S::K), field("softmax", &S::softmax),
       field("temperature", &S::temperature), field("threads", &S::threads), optional_field("df", &S::df),
       optional_field("dG", &S::dG), optional_field("dg0", &S::dg0));
}

}  // namespace infoseg
