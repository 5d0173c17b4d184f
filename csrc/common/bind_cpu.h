// The instruction set and the thread pool of the kernels.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "common/cpu.h"
#include "common/threads.h"

namespace py = pybind11;

namespace infoseg {

static void choose_isa(const std::string& name) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx}) {
    if (name != isa_name(isa)) continue;
    if (!is_compiled(isa))
      throw std::runtime_error(name + " was not compiled into this extension (INFOSEG_BUILD_ISA=all compiles it)");
    if (!set_isa(isa)) throw std::runtime_error("this CPU cannot run " + name);
    return;
  }
  throw std::invalid_argument("unknown instruction set " + name);
}

static void choose_pool(const std::string& name) {
  if (name != "automatic" && name != "own") throw std::invalid_argument("unknown thread pool " + name);
  set_pool(name == "own" ? Pool::own : Pool::automatic);
}

// Throws, so that the module cannot be imported, when this CPU has none of the compiled instruction
// sets.
static void bind_cpu(py::module_& module) {
  best_isa();
  module.def("instruction_set", [] { return isa_name(current_isa()); });
  module.def("best_instruction_set", [] { return isa_name(best_isa()); });
  module.def("set_instruction_set", &choose_isa, py::arg("name"));
  module.def("thread_pool", &pool_name);
  module.def("set_thread_pool", &choose_pool, py::arg("name"));
}

}  // namespace infoseg
