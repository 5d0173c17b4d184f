"""Input of Triton's compiler for one kernel, derived from a launch."""

from dataclasses import dataclass, field

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..kernels.launch import Kernel, Launch

TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
}
BYTES = {name: dtype.itemsize for dtype, name in TYPES.items()}
ALIGNMENT = 16  # bytes: Triton needs it for 128-bit loads, and PyTorch's allocator guarantees it


@dataclass(frozen=True)
class Specialisation:
    """A kernel with the types of its arguments, its constexprs and launch options. Equal
    specialisations compile to the same code.
    """

    kernel: Kernel = field(compare=False, repr=False)
    name: str
    signature: tuple[tuple[str, str], ...]
    constexprs: tuple[tuple[str, object], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, object], ...]

    @staticmethod
    def of(launch: Launch) -> "Specialisation":
        signature, constexprs, aligned = [], [], []
        for name, annotation in launch.kernel.parameters.items():
            if annotation == "constexpr" or launch.arguments.get(name, 0) is None:
                signature.append((name, "constexpr"))
                constexprs.append((name, launch.constexprs.get(name)))
                continue
            value = launch.arguments[name]
            if isinstance(value, Tensor):
                signature.append((name, "*" + TYPES[value.dtype]))
                if value.storage_offset() * value.element_size() % ALIGNMENT == 0:
                    aligned.append(name)
            else:
                signature.append((name, annotation))
        return Specialisation(
            launch.kernel,
            launch.kernel.name,
            tuple(signature),
            tuple(constexprs),
            tuple(aligned),
            tuple(launch.config.options().items()),
        )

    def compile(self, capability: int):
        """Triton's compiled kernel (`.asm["cubin"]`, `.metadata.shared`) for a compute capability,
        such as 90.
        """
        names = [name for name, _ in self.signature]
        source = ASTSource(
            fn=self.kernel.function,
            signature=dict(self.signature),
            constexprs=dict(self.constexprs),
            attrs={(names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in self.aligned},
        )
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(self.options))

    @property
    def dtype(self) -> str:
        """Element type of the first pointer."""
        return next(kind[1:] for _, kind in self.signature if kind.startswith("*"))

    @property
    def allows_wide_loads(self) -> bool:
        """Whether the divisors of the strides (the ALIGN constexprs, in elements) allow 128-bit
        loads.
        """
        known = [value for name, value in self.constexprs if "ALIGN" in name]
        return all(value * BYTES[self.dtype] >= ALIGNMENT for value in known)

    @property
    def limited_by_memory(self) -> bool:
        """Whether memory limits it: it reads features at a shape of the paper, with up to 16 classes,
        one negative at the same position, in float32 or bfloat16.

        Products or registers limit it with more negatives, classes or bits. Single tf32 products
        and float16 are not judged.
        """
        known = dict(self.constexprs)
        few = int(str(known.get("K", 0))) <= 16 and known.get("PRECISION") in ("tf32x3", "ieee")
        one = known.get("LOSS", "same_position") == "same_position" and known.get("OWN_IMAGES", 2) == 2
        return self.kernel.feature_loop is not None and few and one and self.dtype in ("fp32", "bf16")

    def described(self) -> str:
        """A one-line description that distinguishes it from the other specialisations."""
        chosen = [f"{name}={value}" for name, value in self.constexprs if value is not None]
        without = [f"without {name}" for name, value in self.constexprs if value is None]
        options = dict(self.options)
        tile = f"warps={options['num_warps']} stages={options['num_stages']}"
        return " ".join([self.name, self.dtype, *without, *chosen, tile])
