"""The training step as a CUDA graph: the host then starts one graph instead of hundreds of kernels.

As in PyTorch's documentation for a whole network, some steps run on a side stream, then one step is
captured. Its inputs are copied into the same memory before each replay. The captured step is the
same function as the eager one. This has not run on a GPU yet: the tests replace `Capture`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .errors import DataError, first_line
from .recipe import Recipe

if TYPE_CHECKING:
    from .config import Settings

logger = logging.getLogger("infoseg_fast")

WARM_UP = 3  # eager steps with inputs of a kind before a step with such inputs is captured
MAX_GRAPHS = 4  # largest number of kinds of inputs; the smaller last batch of an epoch is one

Step = Callable[[Any], None]


class Capture:
    """The functions of torch.cuda that `GraphedStep` needs."""

    def warm_up(self, act: Callable[[], None]) -> None:
        """Run `act` on a side stream, after all queued work and before all later work."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            act()
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, act: Callable[[], None]) -> Callable[[], None]:
        """Record the kernels of `act` without running them. Returns a function that runs them."""
        graph = torch.cuda.CUDAGraph()
        # Threads that read images may call CUDA at the same time.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            act()
        return graph.replay


class Graph(NamedTuple):
    """A captured step: the function that runs it, its input tensors, and its `Recipe.last`."""

    replay: Callable[[], None]
    inputs: list[Any]
    last: Any


class GraphedStep:
    """A training step that is replayed as a CUDA graph.

    Args:
        step: function of nested lists and tuples of tensors and numbers that changes tensors in
            place. Everything that changes from call to call must be in tensors.
        recipe: the recipe whose `last` the step sets.
        capture: captures steps. None: every call is eager.
        required: whether a step that cannot be captured is an error.
    """

    def __init__(self, step: Step, recipe: Recipe, capture: Capture | None, required: bool = False) -> None:
        self.step, self.recipe, self.capture, self.required = step, recipe, capture, required
        self._graphs: dict[tuple, Graph] = {}
        self._seen: Counter[tuple] = Counter()

    def __call__(self, inputs: Any) -> None:
        if self.capture is None:
            self.step(inputs)
            return
        leaves, structure = tree_flatten(inputs)
        kind = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        if kind not in self._graphs:
            self._seen[kind] += 1
            if self._seen[kind] <= WARM_UP:
                self.capture.warm_up(lambda: self.step(inputs))
                return
            if len(self._graphs) == MAX_GRAPHS or not self._captured(kind, leaves, structure):
                self.step(inputs)
                return
        graph = self._graphs[kind]
        for static, given in zip(graph.inputs, leaves, strict=True):
            if isinstance(static, Tensor):
                static.copy_(given)
        graph.replay()
        self.recipe.last = graph.last

    def _captured(self, kind: tuple, leaves: list[Any], structure: Any) -> bool:
        """Capture a step. Returns False, and logs the reason, if it cannot be captured."""
        assert self.capture is not None
        static = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        try:
            replay = self.capture.capture(lambda: self.step(tree_unflatten(static, structure)))
        except RuntimeError as error:  # from CUDA, an op that waits, or a lack of memory
            if self.required:
                raise DataError(f"--cuda-graph on: the step cannot be captured: {first_line(error)}") from error
            logger.warning("--cuda-graph: off, since the step cannot be captured: %s", first_line(error))
            self.capture = None
            return False
        if not self._graphs:
            logger.info("--cuda-graph: steps are replayed as a CUDA graph")
        self._graphs[kind] = Graph(replay, static, self.recipe.last)
        return True


def capture_for(settings: Settings, recipe: Recipe, device: torch.device, ranks: int) -> Capture | None:
    """The `Capture` of a run. None: its steps are not captured. On a GPU the reason is logged,
    unless the user chose so.

    Raises:
        DataError: --cuda-graph on, and the steps of this run cannot be captured.
    """
    if settings.cuda_graph == "off":
        return None
    reason = None
    if device.type != "cuda":
        reason = f"the run is on a device of the type {device.type}"
    elif ranks > 1:
        reason = "gradients are summed over several ranks within the step"
    elif settings.compile:
        reason = "--compile makes programs of its own"
    reason = reason or recipe.not_capturable()
    if reason is None:
        return Capture()
    if settings.cuda_graph == "on":
        raise DataError(f"--cuda-graph on: {reason}; leave it out")
    if device.type == "cuda":
        logger.warning("--cuda-graph: off, since %s", reason)
    return None


def optimizer_for(recipe: Recipe, settings: Settings, device: torch.device) -> torch.optim.AdamW:
    """AdamW for the parameters that are trained. On a GPU its learning rate and its steps are
    tensors, so that a replay of a CUDA graph reads their new values.
    """
    parameters = [x for x in recipe.parameters() if x.requires_grad]
    gpu, rate = device.type != "cpu", settings.lr
    found = torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay, fused=True, capturable=gpu)
    if gpu:
        for group in found.param_groups:
            group["lr"] = torch.tensor(rate, device=device)
    return found


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step. It does not wait for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
