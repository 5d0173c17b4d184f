"""Images per second and peak memory of training beside a plain loop of the paper, and the shares of
a step.

    python benchmarks/reference_loop.py [--images 32] [--side 128] [--rounds 9] [--threads 1]
    python benchmarks/reference_loop.py --profile [--recipe default] [--classes 6] [--side 64]

The plain loop is the paper as written: Pillow decodes in a DataLoader, the local features L and the
assigned global features S are formed, everything is float32 and eager. Network, crops, augmentation
and optimiser settings are the same, and so are the losses, which are compared. Steps of both loops
run in turns, and their processor time is measured, with decoding: with one thread this is the time
of an idle core. Peak memory is measured in a separate process for each loop.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.augment import augmented
from infoseg_fast.batches import crops, data_info
from infoseg_fast.config import Settings
from infoseg_fast.data.crops import CropSampler, held_in_memory
from infoseg_fast.recipe import recipe_class

STEPS = 10_000  # more than are run


def settings_of(args: argparse.Namespace, data: Path) -> Settings:
    given = {"data": str(data), "classes": args.classes, "recipe": args.recipe, "steps": STEPS}
    settings = Settings.create(given | {"batch_size": args.images, "crop": args.side, "warmup": 0})
    return settings.resolve(settings.open("train"), settings.open("eval"))


def write_images(folder: Path, number: int, side: int) -> None:
    """PNG images of smooth noise, a quarter larger than the crops."""
    draw = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for name in range(number):
        small = draw.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side * 5 // 4, side * 5 // 4), Image.BICUBIC).save(
            folder / "images" / f"{name:04d}.png"
        )


class Pillow(torch.utils.data.Dataset):
    """The crops of a step, each decoded by Pillow when it is asked for."""

    def __init__(self, folder: Path, side: int) -> None:
        self.files, self.side = sorted((folder / "images").iterdir()), side

    def __getitem__(self, crop) -> Tensor:
        pixels = np.asarray(Image.open(self.files[crop.index]).convert("RGB"))
        row, column = (int(x * (n - self.side + 1)) for x, n in zip((crop.y, crop.x), pixels.shape, strict=False))
        cut = pixels[row : row + self.side, column : column + self.side]
        return torch.from_numpy(cut.transpose(2, 0, 1).copy()).float() / 255


def plain_loss(features: Tensor, H: Tensor, projection: torch.nn.Conv2d) -> Tensor:
    """The loss of the paper with same_position negatives, as its text reads."""
    L = projection(features)
    V = torch.softmax(torch.einsum("bdhw,bkd->bkhw", L, H), dim=1)
    S = torch.einsum("bkhw,bkd->bdhw", V, H)
    positive, negative = (L * S).sum(dim=1), (L * S.roll(-1, dims=0)).sum(dim=1)
    return F.softplus(-positive).mean() + F.softplus(negative).mean()


def plain_steps(folder: Path, settings: Settings) -> Iterator[float]:
    images = settings.open("train")
    network = recipe_class("paper")(settings, data_info(images, settings)).network.model.train()
    network.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    sampler = CropSampler(len(images), settings.batch_size, settings.least_batch, settings.seed, 0, STEPS)
    loader = torch.utils.data.DataLoader(Pillow(folder, settings.crop), batch_sampler=sampler)
    for step, batch in enumerate(loader):
        batch, _ = augmented(batch, None, settings, step)
        features, H = network(batch)
        loss = plain_loss(features, H, network.local_projection)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def own_steps(folder: Path, settings: Settings) -> Iterator[float]:
    """The steps of `infoseg_fast.train`, without its log and its checkpoints."""
    images = held_in_memory(settings.open("train"))
    recipe = recipe_class(settings.recipe)(settings, data_info(images, settings)).train()
    optimizer = torch.optim.AdamW(
        [x for x in recipe.parameters() if x.requires_grad], lr=settings.lr, weight_decay=settings.weight_decay,
        fused=True,
    )  # fmt: skip
    for step, (batch, mask, _) in enumerate(crops(images, settings, torch.device("cpu"), 0, STEPS)):
        batch, mask = augmented(batch, mask, settings, step)
        loss = recipe.loss(step, batch, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        recipe.after_step(step)
        yield loss.item()


LOOPS = {"as written": plain_steps, "infoseg-fast": own_steps}


def peak_memory(name: str, args: argparse.Namespace, folder: Path, sent) -> None:
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    steps = LOOPS[name](folder, settings_of(args, folder))
    for _ in range(2):
        next(steps)
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    sent.put(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10)


def compare(args: argparse.Namespace, folder: Path) -> None:
    settings = settings_of(args, folder)
    loops = {name: steps(folder, settings) for name, steps in LOOPS.items()}
    times, losses = {name: [] for name in loops}, {name: [] for name in loops}
    for turn in range(args.rounds + 1):
        for name, steps in loops.items():
            start = time.process_time()
            losses[name].append(next(steps))
            if turn:
                times[name].append(time.process_time() - start)
    print("| loop | images per second of processor time |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {args.images / statistics.median(taken):.1f} |")
    ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    first, last = (max(abs(a / b - 1) for a, b in zip(*(x[part] for x in losses.values()), strict=True))
                   for part in (slice(0, 1), slice(None)))  # fmt: skip
    print(f"median ratio of the times of a step {ratio:.2f}; losses differ by {first:.1e} in the first step and by at "
          f"most {last:.1e} in {args.rounds + 1} steps", flush=True)  # fmt: skip
    context = multiprocessing.get_context("spawn")
    for name in loops:
        sent = context.Queue()
        process = context.Process(target=peak_memory, args=(name, args, folder, sent))
        process.start()
        print(f"peak memory of a process, {name}: {sent.get():.0f} MiB", flush=True)
        process.join()


def profile(args: argparse.Namespace, folder: Path) -> None:
    """Medians of the parts of a step, each timed by itself in turns."""
    settings = settings_of(args, folder)
    images = held_in_memory(settings.open("train"))
    recipe = recipe_class(settings.recipe)(settings, data_info(images, settings)).train()
    networks = [x for x in (recipe.network, recipe.over_network) if x is not None]
    optimizer = torch.optim.AdamW([x for x in recipe.parameters() if x.requires_grad], fused=True)
    batches, parts = crops(images, settings, torch.device("cpu"), 0, STEPS), {}
    for turn in range(args.rounds + 1):
        taken, start = {}, time.process_time()

        def lap(name: str) -> None:
            nonlocal start
            now = time.process_time()
            if turn:  # noqa: B023
                taken[name] = taken.get(name, 0.0) + now - start  # noqa: B023
            start = now

        batch, mask, _ = next(batches)
        lap("data")
        batch, mask = augmented(batch, mask, settings, turn)
        lap("augmentation")
        optimizer.zero_grad(set_to_none=True)
        for network in networks:
            features, H = network.model(batch.contiguous(memory_format=torch.channels_last))
            lap("backbone")
            leaves = [x.detach().requires_grad_() for x in (features, H)]
            projection = network.model.local_projection
            given = *leaves, projection.weight, projection.bias
            loss = network.criterion(*given, mask=None)
            loss.backward()
            lap("loss")
            if network.appearance is not None:
                (-network.appearance(*given, images=batch, mask=None)).backward()
                lap("appearance term")
            torch.autograd.backward([features, H], [x.grad for x in leaves])
            lap("backbone")
        optimizer.step()
        lap("optimiser")
        recipe.after_step(turn)
        lap("averaged weights")
        for name, seconds in taken.items():
            parts.setdefault(name, []).append(seconds)
    medians = {name: 1e3 * statistics.median(x) for name, x in parts.items()}
    whole = sum(medians.values())
    print("| part of a step | ms | share |\n|---|---|---|")
    for name, milliseconds in medians.items():
        print(f"| {name} | {milliseconds:.2f} | {100 * milliseconds / whole:.1f} % |")
    print(f"outside of the backbone: {100 - 100 * medians['backbone'] / whole:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="the shares of a step instead")
    parser.add_argument("--recipe", default="paper", choices=("paper", "default"), help="of --profile")
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not args.profile and args.recipe != "paper":
        parser.error("--recipe is for --profile: the plain loop is the paper's")
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 2 * args.images, args.side)
        (profile if args.profile else compare)(args, Path(folder))


if __name__ == "__main__":
    main()
