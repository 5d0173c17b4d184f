"""Plans: what the host does for a call of an op, found once and repeated from then on.

Grids, tiles, compile-time constants and the shapes of outputs follow from the shapes, strides,
dtypes and settings of the arguments alone. `planned` runs the function that finds them once for
each kind of arguments, on tensors without memory, and keeps the tensors that it allocates and the
kernels that it launches. A later call allocates the same tensors and launches the same kernels.

Temporary tensors share one allocation. A kernel that was launched once is launched again without
Triton's search for it, which takes longer than the launch: what the search depends on is part of
the plan, except for the divisibility of addresses by 16, which is found anew. Such a launch is
given addresses in place of tensors.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.runtime import driver

from . import configs, interpreted
from .launch import Launch, recorded, recording

MAX_PLANS = 256  # of a function; then all are forgotten
WORKSPACE_ALIGNMENT = 512  # bytes, that of PyTorch's allocator
POINTER_ALIGNMENT = 16  # bytes: Triton compiles another variant for addresses that it does not divide
INTERPRETED = interpreted()
_PLAIN = (Tensor, torch.nn.Parameter)
_ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
}


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: `offset` bytes after the beginning of tensor number `number` of a call."""

    number: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, tensors: list[Tensor]) -> Tensor:
        whole = tensors[self.number]
        if (whole.shape, whole.stride(), whole.dtype, 0) == (self.size, self.stride, self.dtype, self.offset):
            return whole
        start = (whole.storage_offset() * whole.element_size() + self.offset) // self.dtype.itemsize
        return whole.new_empty(0, dtype=self.dtype).set_(whole.untyped_storage(), start, self.size, self.stride)


class _Allocations(TorchDispatchMode):
    """Context in which tensors without memory may be allocated and viewed; anything else raises,
    since a plan would not repeat it.
    """

    def __init__(self, given: list[Tensor]):
        super().__init__()
        self.numbers = {x.untyped_storage()._cdata: i for i, x in enumerate(given)}
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        storage = found.untyped_storage()._cdata
        if storage not in self.numbers and function in _ALLOCATIONS:
            self.numbers[storage] = len(self.numbers)
            self.made.append(found)
        if function._schema.is_mutable or storage not in self.numbers:
            raise AssertionError(f"{function} is neither an allocation nor a view, and a plan cannot repeat it")
        return found

    def place(self, x: Tensor) -> _Place:
        number = self.numbers[x.untyped_storage()._cdata]
        return _Place(number, x.storage_offset() * x.element_size(), x.shape, x.stride(), x.dtype)


@dataclass
class _Start:
    """A launch of a plan: the values of all parameters of the kernel, with the places of tensors."""

    launch: Launch
    values: list[object]
    places: list[tuple[int, _Place]]  # with the position of the parameter
    # Triton's compiled kernel and what its launcher needs, by which addresses are aligned; () if all.
    compiled: dict[tuple[bool, ...], tuple[Any, ...]] = field(default_factory=dict)
    pointers: list[tuple[int, int, int]] = field(init=False)  # position, number, offset

    def __post_init__(self):
        self.pointers = [(i, place.number, place.offset) for i, place in self.places]
        self.grid = (*self.launch.grid, 1, 1)[:3]

    def on_tensors(self, tensors: list[Tensor]) -> Any:
        """Launch as Triton does, compiling the kernel at need; returns what `Launch.run` does."""
        names = list(self.launch.kernel.parameters)
        given = {names[i]: place.tensor(tensors) for i, place in self.places}
        return replace(self.launch, arguments=self.launch.arguments | given).run()

    def __call__(self, tensors: list[Tensor], addresses: list[int], stream: int) -> None:
        values, bits = self.values.copy(), 0
        for i, number, offset in self.pointers:
            values[i] = address = addresses[number] + offset
            bits |= address
        aligned = ()
        if bits % POINTER_ALIGNMENT:
            aligned = tuple([values[i] % POINTER_ALIGNMENT == 0 for i, *_ in self.pointers])
        compiled = self.compiled.get(aligned)
        if compiled is None:
            made = self.on_tensors(tensors)
            self.compiled[aligned] = made, made.run, made.function, made.packed_metadata
        else:
            _, run, function, metadata = compiled
            run(*self.grid, stream, function, metadata, None, None, None, *values)


@dataclass
class _Plan:
    # Of the tensors that are allocated: the number of a given tensor of the same form (None: there
    # is none), size, stride and dtype. torch.empty_like takes less time than torch.empty_strided.
    made: list[tuple]
    starts: list[_Start]
    results: list[int]  # numbers of the tensors that are returned; those that are given come first
    layout: "Layout"  # of what is kept in the workspace

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        device = tensors[0].device
        for like, size, stride, dtype in self.made:
            tensors.append(
                torch.empty_strided(size, stride, dtype=dtype, device=device)
                if like is None
                else torch.empty_like(tensors[like])
            )
        if INTERPRETED or _hooked():
            for start in self.starts:
                start.on_tensors(tensors)
        elif self.starts:
            # Triton launches on the current device, which need not be that of the tensors.
            active = driver.active
            current = active.get_current_device()
            if device.type == "cuda" and device.index != current:
                with torch.cuda.device(device):
                    self._launch(tensors, active.get_current_stream(device.index))
            else:
                self._launch(tensors, active.get_current_stream(current))
        return tuple([tensors[number] for number in self.results])

    def _launch(self, tensors: list[Tensor], stream: int) -> None:
        addresses = [x.data_ptr() for x in tensors]
        for start in self.starts:
            start(tensors, addresses, stream)


def _form(x: Tensor) -> tuple:
    return x.shape, x.stride(), x.dtype


def _hooked() -> bool:
    """Whether something, such as a profiler, asked Triton to be called at each launch."""
    hook = knobs.runtime.launch_enter_hook
    return hook is not None and bool(getattr(hook, "calls", True))


def _find(
    function: Callable[..., tuple[Tensor, ...]], arguments: tuple[object, ...], whole: int | None = None
) -> _Plan:
    """The plan of `function` for arguments of this kind. It returns the first `whole` results; the
    others are parts of the workspace, which it returns last. None: it returns all results.
    """

    def without_memory(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x

    stand_ins = [without_memory(x) for x in arguments]
    given = [x for x in stand_ins if isinstance(x, Tensor)]
    with torch.no_grad(), recorded() as launches, _Allocations(given) as allocations:
        results = function(*stand_ins)
    returned = [allocations.place(x) for x in results[:whole]]
    packed = [] if whole is None else [allocations.place(x) for x in results[whole:]]
    number_of_given, all_tensors = len(given), [*given, *allocations.made]
    if any(place.offset or place.size != all_tensors[place.number].shape for place in returned):
        raise AssertionError("a plan returns whole tensors")
    if any(place.number < number_of_given for place in packed):
        raise AssertionError("a plan keeps tensors that it allocated")
    kept = sorted({place.number for place in returned if place.number >= number_of_given})
    order = {number: i for i, number in enumerate([*range(number_of_given), *kept])}

    # The tensors that are not returned lie one after the other in the workspace.
    workspace, offsets = 0, {}
    for number, x in enumerate(allocations.made, number_of_given):
        if number not in order:
            offsets[number] = workspace
            workspace += -(-x.numel() * x.element_size() // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT

    def settled(place: _Place) -> _Place:
        number, offset = order.get(place.number, len(order)), place.offset + offsets.get(place.number, 0)
        return _Place(number, offset, place.size, place.stride, place.dtype)

    starts = []
    for started in launches:
        values = [started.constexprs.get(name, started.arguments.get(name)) for name in started.kernel.parameters]
        places = [(i, settled(allocations.place(x))) for i, x in enumerate(values) if isinstance(x, Tensor)]
        starts.append(_Start(started, values, places))
    alike = {_form(torch.empty_like(x)): i for i, x in enumerate(given)}
    made = [(alike.get(_form(x)), *_form(x)) for x in (allocations.made[number - number_of_given] for number in kept)]
    numbers = [order[place.number] for place in returned]
    if offsets or whole is not None:
        made.append((None, (workspace,), (1,), torch.uint8))
    if whole is not None:
        numbers.append(len(order))
    return _Plan(made, starts, numbers, Layout([settled(place) for place in packed]))


class Layout:
    """Where the tensors lie that a forward pass keeps in its workspace, and the plans of the
    backward pass that reads them.
    """

    def __init__(self, places: list[_Place]):
        self.places = places
        self.backward: dict[tuple, _Plan] = {}

    def tensors(self, workspace: Tensor) -> list[Tensor]:
        return [
            workspace.view(place.dtype).as_strided(place.size, place.stride, place.offset // place.dtype.itemsize)
            for place in self.places
        ]


_ALL_PLANS: list[dict[tuple, _Plan]] = []


def forget_plans() -> None:
    """Find every plan anew."""
    for plans in _ALL_PLANS:
        plans.clear()


def planned(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Decorator of a function that allocates tensors, launches kernels, and does nothing else with
    tensors.

    Its arguments are tensors, None, and hashable settings. It returns whole tensors that it
    allocated or was given. Where launches are recorded, with fake tensors and while tiles are
    tuned, it runs as it is.
    """
    plans: dict[tuple, _Plan] = {}
    _ALL_PLANS.append(plans)

    @functools.wraps(function)
    def call(*arguments):
        key, tensors = _kind(arguments)
        if key is None:
            return function(*arguments)
        plan = plans.get(key)
        if plan is None:
            if configs.autotunes(tensors[0].device):
                return function(*arguments)
            plan = _keep(plans, key, _find(function, arguments))
        return plan(tensors)

    return call


def _kind(arguments: Sequence[object]) -> tuple[tuple | None, list[Tensor]]:
    """What a plan for the arguments depends on, or None where there must be none; the tensors."""
    tensors: list[Tensor] = []
    key = [torch.get_float32_matmul_precision()]
    for x in arguments:
        if type(x) in _PLAIN:
            tensors.append(x)
            key += (x.shape, x.stride(), x.dtype)
        elif isinstance(x, Tensor):
            return None, tensors
        else:
            key.append(x)
    return (None, tensors) if recording() else ((tensors[0].device, *key), tensors)


def _keep(plans: dict[tuple, _Plan], key: tuple, plan: _Plan) -> _Plan:
    if len(plans) >= MAX_PLANS:
        plans.clear()
    plans[key] = plan
    return plan


class Passes:
    """Plans of a forward and a backward pass. What the first keeps for the second lies in one
    tensor, and a plan of the second is found without looking at the tensors again.

    Args:
        forward: a function as `planned` takes them. It returns the result and what to keep, all of
            it allocated by the function. The first argument is a tensor.
        backward: `backward(kept, grad, *arguments)`, such a function too.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., tuple[Tensor, ...]],
    ):
        self._forward, self._backward = forward, backward
        self._plans: dict[tuple, _Plan] = {}
        _ALL_PLANS.append(self._plans)

    def forward(self, tensors: Sequence[Tensor | None], *how: object) -> tuple[Tensor, Sequence[Tensor], Layout | None]:
        """The result, what is kept, and its layout, None where the forward pass had no plan."""
        kinds = [None if x is None else (x.shape, x.stride(), x.dtype) for x in tensors]
        key = tensors[0].device, torch.get_float32_matmul_precision(), *kinds, *how
        plan = self._plans.get(key)
        if plan is None or recording():
            empty = not tensors[0].numel()  # there may be values that no kernel writes
            if empty or recording() or configs.autotunes(tensors[0].device):
                out, *kept = self._forward(*tensors, *how)
                return out, kept, None
            plan = _keep(self._plans, key, _find(self._forward, (*tensors, *how), whole=1))
        out, workspace = plan([x for x in tensors if x is not None])
        return out, (workspace,), plan.layout

    def backward(
        self,
        layout: Layout | None,
        kept: Sequence[Tensor],
        grad: Tensor,
        tensors: Sequence[Tensor | None],
        *how: object,
    ) -> tuple[Tensor, ...]:
        """The gradients. `tensors` are those of the forward pass, and those that it returned;
        `how` is that of the forward pass.
        """
        if layout is None:
            return self._backward(kept, grad, tensors, *how)
        kind = torch.get_float32_matmul_precision(), grad.dtype
        plan = layout.backward.get(kind)
        if plan is None:
            number = len(tensors)

            def function(workspace, grad, *arguments):
                return self._backward(layout.tensors(workspace), grad, arguments[:number], *arguments[number:])

            plan = layout.backward[kind] = _find(function, (*kept, grad, *tensors, *how))
        return plan([*kept, grad, *[x for x in tensors if x is not None]])
