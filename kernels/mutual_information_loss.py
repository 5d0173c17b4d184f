"""`mutual_information_loss`: the choice of kernels and tiles, and what the forward pass saves."""

from dataclasses import replace

import torch
import triton

from ..ops.protocol import Gradients, empty_gradients
from . import configs, mutual_information_loss_configs  # noqa: F401 (adds its rows to the table)
from .launch import launch
from .mutual_information_loss_backward import loss_image_gradient, loss_partner_gradient
from .mutual_information_loss_forward import SUMS, loss_forward, loss_value
from .plans import planned
from .projection import FeatureKernel
from .reduction import sum_partials
from .tiles import block, layout, map_arguments, map_constexprs, no_positions, precision, strides

PROGRAMS = 512  # keeps any GPU busy; fixed, so that results do not depend on the GPU
# Programs if each holds its own parts of dG in registers: every further program writes and reads
# one more part. Two on each multiprocessor of an H200.
PROGRAMS_WITH_PARTS = 256
# Maximum columns of the block that holds the own image; the part of dG of more columns does not fit
# the registers.
MAX_OWN_COLUMNS = 64
# Scores are saved if that adds at most this share to the bytes that a training step must move.
MAX_KEPT_SHARE = 0.08
VALUE_CONFIG = configs.Config({"BLOCK": 128}, num_warps=4, num_stages=1)


class MutualInformationLossKernel(FeatureKernel, op="mutual_information_loss"):
    """Saves `share` [1 + K] of `loss_value` and, where `_Sizes.keeps` something, one more tensor."""

    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def operands(self, features):
        return _operand_dtype(features.dtype)

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        if dtype == torch.float64:
            return "the loss kernel is float32; float64 runs on the reference"
        return super().unsupported(device_type, dtype)

    def fake_saved(self, features, G, g0, valid, settings, needs):
        return _Sizes(features, G, g0, valid, settings).saved(needs)

    def forward(self, features, G, g0, valid, settings, needs):
        loss, *saved = _forward(features, G, _operands(features, G), g0, valid, settings, any(needs))
        return loss, saved

    def backward(self, grad_loss, saved, features, G, g0, valid, settings, needs):
        if no_positions(features):
            return Gradients(*(x.zero_() for x in empty_gradients(features, G, needs)))
        share, kept = saved if len(saved) == 2 else (*saved, None)
        operands = _operands(features, G)
        return Gradients(*_gradients(grad_loss, share, kept, features, G, operands, g0, valid, settings, needs))


def _operands(features, G):
    """G in the dtype of the products."""
    return G.to(_operand_dtype(features.dtype))


def _operand_dtype(features: torch.dtype) -> torch.dtype:
    """Only bfloat16 is multiplied as it is: coefficients may exceed the range of float16."""
    return torch.bfloat16 if features == torch.bfloat16 else torch.float32


@planned
def _forward(features, G, operands, g0, valid, settings, gradient):
    """The loss and what is saved."""
    return _Sizes(features, G, g0, valid, settings, operands).forward(gradient)


@planned
def _gradients(upstream, share, kept, features, G, operands, g0, valid, settings, needs):
    """The gradients by features, G and g0."""
    return _Sizes(features, G, g0, valid, settings, operands).backward(upstream, share, kept, needs)


class _Sizes:
    """The sizes of one call, and the arguments that its launches share."""

    def __init__(self, features, G, g0, valid, settings, operands=None):
        self.features, self.G, self.settings = features, G, settings
        self.B, self.C, h, w = features.shape
        self.K, self.P, self.n = G.shape[1], h * w, settings.num_negatives
        self.loss = "infonce" if settings.estimator == "infonce" else settings.negatives
        self.arguments = map_arguments(features) | {
            "G": operands,
            "g0": g0,
            "valid": valid,
            "B": self.B,
            "n": self.n,
            "channels": self.C,
            "tau": settings.temperature,
        }
        block_K = block(self.K)
        own = triton.next_power_of_2(1 + self.n)
        complete = own * block_K <= MAX_OWN_COLUMNS and (self.n == 1 or self.loss != "same_position")
        self.own_images = own if complete else 1
        self.more = not complete
        self.balance = {"BALANCE": settings.balance != 0}
        half = features.dtype == torch.float16
        self.constexprs = map_constexprs(features, self.K) | {
            "PRECISION": "tf32" if half else precision(features.dtype),
            "LOSS": self.loss,
            "BLOCK_K": block_K,
        }
        mode = "more" if self.more else "kept" if self.keeps else "complete"
        variant = f"{'float16' if half else self.constexprs['PRECISION']} {mode} {self.loss}"
        self.key = configs.Key(features.element_size(), self.C, block_K, variant)

    def _empty(self, *shape: int) -> torch.Tensor:
        return self.features.new_empty(shape, dtype=torch.float32)

    @property
    def keeps(self) -> str:
        """What the forward pass keeps for the backward pass, besides `share`.

        - "lse": the log-sum-exp of all scores, [B, P];
        - "V": the probabilities, [B, K, P], which hold the feature that a partner assigned to a
          position;
        - "scores": all (1 + n) K scores of a position, if they are few beside its channels;
        - "": nothing, scores are computed again.
        """
        if self.more:
            return {"infonce": "lse", "same_position": "V", "reassigned": ""}[self.loss]
        kept = 2 * 4 * (1 + self.n) * self.K
        return "scores" if kept <= MAX_KEPT_SHARE * 3 * self.C * self.features.element_size() else ""

    def saved(self, needs) -> list[torch.Tensor]:
        shapes = {"lse": (self.P,), "V": (self.K, self.P), "scores": (1 + self.n, self.K, self.P)}
        keeps = self.keeps if any(needs) else ""
        share = self._empty(1 + self.K)
        return [share, self._empty(self.B, *shapes[keeps])] if keeps else [share]

    def _kept(self, kept) -> dict[str, torch.Tensor | None]:
        """The kernels' arguments for what is kept."""
        names = {"lse": "lse", "V": "V", "scores": "kept"}
        return {name: kept if self.keeps == kind else None for kind, name in names.items()}

    def _splits(self, config, units: int, programs: int = PROGRAMS) -> int:
        """The number of parts that tiles of positions are split into, if `units` programs are
        needed without.
        """
        return max(1, min(triton.cdiv(self.P, config.blocks["BLOCK_P"]), triton.cdiv(programs, max(units, 1))))

    def forward(self, gradient: bool) -> tuple[torch.Tensor, ...]:
        loss, saved = self._empty(), self.saved([gradient])
        share, kept = saved if len(saved) == 2 else (*saved, None)

        def run(config):
            splits = self._splits(config, self.B)
            # With same_position and several partners, the first pass computes the probabilities of
            # all images.
            two = self.keeps == "V"
            passes = [(1, False), (0, True)] if two else [(self.own_images, self.more)]
            state = self._empty(self.B, self.K, self.P) if two and kept is None else kept
            parts = len(passes) * self.B * splits
            partials = self._empty(SUMS.value + self.K, parts)
            for i, (own_images, more) in enumerate(passes):
                launch(
                    loss_forward,
                    (self.B * splits,),
                    self.arguments
                    | self._kept(state)
                    | {"partials": partials, "part": i * self.B * splits, "parts": parts, "splits": splits},
                    self.constexprs | self.balance | {"OWN_IMAGES": own_images, "MORE": more},
                    config,
                )
            launch(
                loss_value,
                (1,),
                {"partials": partials, "loss": loss, "share": share, "parts": parts, "n": self.n}
                | {"balance": self.settings.balance},
                {"K": self.K, "LOSS": self.loss, "BLOCK_K": triton.next_power_of_2(self.K)} | self.balance,
                VALUE_CONFIG,
            )
            return loss, *saved

        return configs.run("loss_forward", self.key, self.features.device, run)

    def backward(self, upstream, share, kept, needs) -> Gradients:
        device = self.features.device

        def run(image_config, partner_config=None):
            return self._gradients(upstream, share, kept, needs, image_config, partner_config)

        def with_partners(image_config):
            return configs.run("loss_partner_gradient", self.key, device, lambda config: run(image_config, config))

        # With same_position the partners' part of df comes from that kernel too.
        partners = self.more and (needs.G or needs.g0 or self.keeps == "V")
        return configs.run("loss_image_gradient", self.key, device, with_partners if partners else run)

    def _gradients(self, upstream, share, kept, needs, image_config, partner_config):
        found = empty_gradients(self.features, self.G, needs)
        shared = self.arguments | self._kept(kept) | {"share": share, "upstream": upstream}
        shared["by_partners"] = torch.empty_like(kept) if self.keeps == "V" else None
        scores = shared.pop("kept")
        image_config, image_chunks = self._chunked(image_config)
        programs = PROGRAMS if self.more else PROGRAMS_WITH_PARTS
        image_splits = self._splits(image_config, self.B * image_chunks, programs)
        image_parts = min(self.own_images, 1 + self.n) * image_splits
        partner_parts = 0
        if partner_config is not None:
            partner_config, partner_chunks = self._chunked(partner_config)
            units = triton.cdiv(self.B, partner_config.blocks["IMAGES"]) * (partner_chunks if needs.G else 1)
            partner_parts = self._splits(partner_config, units)
        parts = image_parts + partner_parts
        dG = self._empty(parts, *self.G.shape) if needs.G else None
        dg0 = self._empty(parts, self.B, self.K) if needs.g0 else None

        def sums(first, number):
            narrow = {"dG": dG, "dg0": dg0}
            return {name: None if x is None else x.narrow(0, first, number) for name, x in narrow.items()}

        if partner_parts:
            launch(
                loss_partner_gradient,
                (units * partner_parts,),
                shared | sums(image_parts, partner_parts) | {"splits": partner_parts, "first_partner": self.own_images},
                self.constexprs | {"NEED_G": needs.G},
                partner_config,
            )
        df = found.features if needs.features else self.features
        df_kind, df_align = layout(df)
        launch(
            loss_image_gradient,
            (self.B * image_chunks * image_splits,),
            shared
            | sums(0, image_parts)
            | {"kept": scores, "df": df if needs.features else None, "splits": image_splits}
            | strides(df, "df_"),
            self.constexprs
            | self.balance
            | {"DF_LAYOUT": df_kind, "DF_ALIGN": df_align, "OWN_IMAGES": self.own_images, "MORE": self.more}
            | {"NEED_F": needs.features, "NEED_G": needs.G},
            image_config,
        )
        pairs = [(x, out) for x, out in ((dG, found.G), (dg0, found.g0)) if x is not None]
        if pairs:
            sum_partials(*pairs)
        return found

    def _chunked(self, config) -> tuple[configs.Config, int]:
        """The configuration with the BLOCK_D that the kernels expect, and the number of chunks of
        channels.
        """
        blocks = config.blocks
        if blocks["BLOCK_C"] >= self.C:
            config = replace(config, blocks=blocks | {"BLOCK_D": blocks["BLOCK_C"]})
        return config, max(1, triton.cdiv(self.C, config.blocks["BLOCK_D"]))
