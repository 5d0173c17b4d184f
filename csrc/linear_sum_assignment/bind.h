#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "linear_sum_assignment/linear_sum_assignment.h"

namespace py = pybind11;

namespace infoseg {

static std::string explain(const AssignmentOutcome& outcome, bool in_batch) {
  const std::string where = in_batch ? " of cost[" + std::to_string(outcome.problem) + "]" : "";
  switch (outcome.status) {
    case AssignmentStatus::kInvalid:
      return "cost matrix contains invalid numeric entries: row " + std::to_string(outcome.row) + where + " holds " +
             std::string(py::str(py::float_(outcome.value))) + " in column " + std::to_string(outcome.col);
    case AssignmentStatus::kInfeasibleRow:
      return "cost matrix is infeasible: row " + std::to_string(outcome.row) + where +
             " has no allowed column left beside the other rows'";
    default:
      return "cost matrix is infeasible: column " + std::to_string(outcome.col) + where +
             " has no allowed row left beside the other columns'";
  }
}

// Finds the type of costs that the solver reads as they are; Python converts the others.
static bool type_of(const py::array& cost, CostType& type) {
  const char kind = cost.dtype().kind();
  const auto size = cost.itemsize();
  if (cost.dtype().byteorder() != '=') return false;
  for (py::ssize_t axis = 0; axis < cost.ndim(); ++axis) {
    if (cost.strides(axis) % size != 0) return false;
  }
  if (kind == 'f' && size == 8)
    type = CostType::kFloat64;
  else if (kind == 'f' && size == 4)
    type = CostType::kFloat32;
  else if (kind == 'i' && size == 8)
    type = CostType::kInt64;
  else
    return false;
  return true;
}

static py::tuple linear_sum_assignment(const py::array& cost, bool maximize, int threads) {
  CostBatch costs;
  if (!type_of(cost, costs.type)) throw py::type_error("cost must be a float32, float64 or int64 array");
  const auto dims = cost.ndim();
  if (dims != 2 && dims != 3) throw std::invalid_argument("cost must have 2 or 3 dimensions");
  const bool in_batch = dims == 3;
  const auto item = cost.itemsize();
  costs.data = cost.data();
  costs.batch = in_batch ? cost.shape(0) : 1;
  costs.rows = cost.shape(dims - 2);
  costs.cols = cost.shape(dims - 1);
  costs.batch_stride = in_batch ? cost.strides(0) / item : 0;
  costs.row_stride = cost.strides(dims - 2) / item;
  costs.col_stride = cost.strides(dims - 1) / item;
  costs.maximize = maximize;

  const py::ssize_t matched = std::min(costs.rows, costs.cols);
  const auto shape = in_batch ? py::array::ShapeContainer{costs.batch, matched} : py::array::ShapeContainer{matched};
  py::array_t<std::int64_t> rows(shape), cols(shape);
  std::int64_t* row_indices = rows.mutable_data();
  std::int64_t* col_indices = cols.mutable_data();
  AssignmentOutcome outcome;
  // Releasing the interpreter's lock takes as long as a small problem.
  if (costs.batch * costs.rows * costs.cols > 1024) {
    py::gil_scoped_release release;
    outcome = solve_assignment(costs, threads, row_indices, col_indices);
  } else {
    outcome = solve_assignment(costs, 1, row_indices, col_indices);
  }
  if (outcome.status != AssignmentStatus::kSolved) throw py::value_error(explain(outcome, in_batch));
  return py::make_tuple(std::move(rows), std::move(cols));
}

static void bind_linear_sum_assignment(py::module_& module) {
  module.def("linear_sum_assignment", &linear_sum_assignment, py::arg("cost").noconvert(), py::arg("maximize") = false,
             py::arg("threads") = 1);
}

}  // namespace infoseg
