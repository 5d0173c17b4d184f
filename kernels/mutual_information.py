"""`mutual_information_loss`: which kernels run, with which tiles, and what is kept between them."""

from dataclasses import replace

import torch
import triton

from ..ops.protocol import Gradients, empty_gradients
from . import configs, mutual_information_configs  # noqa: F401 (adds its rows to the table)
from .launch import launch
from .mutual_information_backward import loss_image_gradient, loss_partner_gradient
from .mutual_information_forward import SUMS, loss_forward, loss_value
from .reduction import sum_partials
from .tiles import alignment, block, layout, precision, strides

# Programs that keep any GPU of today busy; fixed, so that results do not depend on the GPU.
PROGRAMS = 512
# Where a program has the parts of dG of its own block in registers, each program more writes and reads one.
PROGRAMS_WITH_PARTS = 128
# Columns of the block that holds the own image, at most: with more, its part of dG would not fit registers.
OWN_COLUMNS = 64
# Scores are kept where that adds at most this to the bytes that a training step must move.
KEPT_SHARE = 0.08
VALUE = configs.Config({"BLOCK": 128}, num_warps=4, num_stages=1)


class LossKernel:
    """The kernels of `mutual_information_loss` (see `infoseg_fast.ops.protocol`).

    `forward` saves `share` [1 + K] of `loss_value` and, where `_Plan.keeps` names one, a tensor more.
    """

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        from . import unsupported

        if dtype == torch.float64:
            return "its loss is float32: float64 takes the reference"
        return unsupported(device_type, dtype)

    def fake_saved(self, features, G, g0, valid, settings, needs):
        return _Plan(features, G, g0, valid, settings).state(needs)

    def forward(self, features, G, g0, valid, settings, needs):
        plan = _Plan(features, G, g0, valid, settings)
        state = plan.state(needs)
        return plan.forward(*state), state

    def backward(self, grad_loss, saved, features, G, g0, valid, settings, needs):
        return _Plan(features, G, g0, valid, settings).backward(grad_loss, *saved, needs=needs)


class _Plan:
    """One call's sizes, and the arguments that its launches share."""

    def __init__(self, features, G, g0, valid, settings):
        self.features, self.settings = features, settings
        self.B, self.C, h, w = features.shape
        self.K, self.P, self.n = G.shape[1], h * w, settings.num_negatives
        self.loss = "infonce" if settings.estimator == "infonce" else settings.negatives
        # Only bfloat16 is multiplied as it is: the coefficients may lie outside of what float16 holds.
        operands = torch.bfloat16 if features.dtype == torch.bfloat16 else torch.float32
        self.G = G
        kind, align = layout(features)
        self.arguments = {
            "features": features,
            "G": G.to(operands),
            "g0": g0,
            "valid": valid,
            "B": self.B,
            "n": self.n,
            "P": self.P,
            "w": w,
            "channels": self.C,
            **strides(features),
            "tau": settings.temperature,
        }
        self.block_k = block(self.K)
        own = triton.next_power_of_2(1 + self.n)
        complete = own * self.block_k <= OWN_COLUMNS and (self.n == 1 or self.loss != "same_position")
        self.own_images = own if complete else 1
        self.more = not complete
        self.constexprs = {
            "C": self.C,
            "K": self.K,
            "LAYOUT": kind,
            "ALIGN": align,
            "ALIGN_P": alignment(self.P),
            "PRECISION": "tf32" if features.dtype == torch.float16 else precision(features.dtype),
            "LOSS": self.loss,
            "BLOCK_K": self.block_k,
        }
        mode = "more" if self.more else "kept" if self.keeps else "complete"
        word = "float16" if features.dtype == torch.float16 else self.constexprs["PRECISION"]
        variant = f"{word} {mode} {self.loss}"
        self.key = configs.Key(features.element_size(), self.C, self.block_k, variant)

    @property
    def keeps(self) -> str:
        """What is kept for going back.

        "lse": the log-sum-exp of all scores, [B, P]; "V": the probabilities, [B, K, P], without which no position knows
        the feature that a partner assigned to it; "scores": all (1 + n) K of a position, where those are few beside its
        channels; "": nothing, scores are formed anew.
        """
        if self.more:
            return {"infonce": "lse", "same_position": "V", "reassigned": ""}[self.loss]
        kept = 2 * 4 * (1 + self.n) * self.K
        return "scores" if kept <= KEPT_SHARE * 3 * self.C * self.features.element_size() else ""

    def state(self, needs) -> list[torch.Tensor]:
        shapes = {"lse": (self.P,), "V": (self.K, self.P), "scores": (1 + self.n, self.K, self.P)}
        keeps = self.keeps if any(needs) else ""
        share = self.G.new_empty(1 + self.K)
        return [share, self.G.new_empty(self.B, *shapes[keeps])] if keeps else [share]

    def _kept(self, kept) -> dict[str, torch.Tensor | None]:
        """The kernels' arguments for what is kept."""
        names = {"lse": "lse", "V": "V", "scores": "kept"}
        return {name: kept if self.keeps == kind else None for kind, name in names.items()}

    def _splits(self, config, units: int, programs: int = PROGRAMS) -> int:
        """Into how many parts the tiles of positions are split where `units` programs would do without."""
        return max(1, min(triton.cdiv(self.P, config.blocks["BLOCK_P"]), triton.cdiv(programs, max(units, 1))))

    def forward(self, share, kept=None):
        loss = self.G.new_empty(())

        def started(config):
            splits = self._splits(config, self.B)
            # With same_position and several partners, the probabilities of all images come first.
            two = self.keeps == "V"
            passes = [(1, False), (0, True)] if two else [(self.own_images, self.more)]
            state = self.G.new_empty(self.B, self.K, self.P) if two and kept is None else kept
            parts = len(passes) * self.B * splits
            partials = self.G.new_empty(SUMS.value + self.K, parts)
            for i, (own_images, more) in enumerate(passes):
                launch(
                    loss_forward,
                    (self.B * splits,),
                    self.arguments
                    | self._kept(state)
                    | {
                        "partials": partials,
                        "part": i * self.B * splits,
                        "parts": parts,
                        "splits": splits,
                    },
                    self.constexprs | {"OWN_IMAGES": own_images, "MORE": more, "BALANCE": self.settings.balance != 0},
                    config,
                )
            launch(
                loss_value,
                (1,),
                {
                    "partials": partials,
                    "loss": loss,
                    "share": share,
                    "parts": parts,
                    "n": self.n,
                    "balance": self.settings.balance,
                },
                {
                    "K": self.K,
                    "LOSS": self.loss,
                    "BALANCE": self.settings.balance != 0,
                    "BLOCK_K": triton.next_power_of_2(self.K),
                },
                VALUE,
            )
            return loss

        return configs.run("loss_forward", self.key, self.features.device, started)

    def backward(self, upstream, share, kept=None, *, needs):
        if self.B * self.P == 0:
            return Gradients(*(x.zero_() for x in empty_gradients(self.features, self.G, needs)))

        def started(image_config, partner_config=None):
            return self._gradients(upstream, share, kept, needs, image_config, partner_config)

        def with_partners(image_config):
            return configs.run(
                "loss_partner_gradient", self.key, self.features.device, lambda config: started(image_config, config)
            )

        # With same_position the partners' part of df comes from there too.
        partners = self.more and (needs.G or needs.g0 or self.keeps == "V")
        return configs.run(
            "loss_image_gradient", self.key, self.features.device, with_partners if partners else started
        )

    def _gradients(self, upstream, share, kept, needs, image_config, partner_config):
        found = empty_gradients(self.features, self.G, needs)
        by_partners = torch.empty_like(kept) if self.keeps == "V" else None
        shared = self.arguments | {
            "V": kept if self.keeps == "V" else None,
            "lse": kept if self.keeps == "lse" else None,
            "by_partners": by_partners,
            "share": share,
            "upstream": upstream,
        }
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
        dG = self.G.new_empty(parts, *self.G.shape) if needs.G else None
        dg0 = self.G.new_empty(parts, self.B, self.K) if needs.g0 else None

        def part(x, first, number):
            return None if x is None else x.narrow(0, first, number)

        if partner_parts:
            launch(
                loss_partner_gradient,
                (units * partner_parts,),
                shared
                | {
                    "dG": part(dG, image_parts, partner_parts),
                    "dg0": part(dg0, image_parts, partner_parts),
                    "splits": partner_parts,
                    "first_partner": self.own_images,
                },
                self.constexprs | {"NEED_G": needs.G},
                partner_config,
            )
        df = found.features if needs.features else self.features
        df_kind, df_align = layout(df)
        launch(
            loss_image_gradient,
            (self.B * image_chunks * image_splits,),
            shared
            | {
                "kept": kept if self.keeps == "scores" else None,
                "df": df if needs.features else None,
                "dG": part(dG, 0, image_parts),
                "dg0": part(dg0, 0, image_parts),
                "splits": image_splits,
                **strides(df, "df_"),
            },
            self.constexprs
            | {
                "DF_LAYOUT": df_kind,
                "DF_ALIGN": df_align,
                "OWN_IMAGES": self.own_images,
                "MORE": self.more,
                "BALANCE": self.settings.balance != 0,
                "NEED_F": needs.features,
                "NEED_G": needs.G,
            },
            image_config,
        )
        sums = [(x, out) for x, out in ((dG, found.G), (dg0, found.g0)) if x is not None]
        if sums:
            sum_partials(*sums)
        return found

    def _chunked(self, config) -> tuple[configs.Config, int]:
        """The configuration with BLOCK_D as the kernels ask, and the number of chunks of channels."""
        blocks = config.blocks
        if blocks["BLOCK_C"] >= self.C:
            config = replace(config, blocks=blocks | {"BLOCK_D": blocks["BLOCK_C"]})
        return config, max(1, triton.cdiv(self.C, config.blocks["BLOCK_D"]))
