"""Images per second and peak memory of training beside a plain loop of the paper, and the shares of
a step.

    python benchmarks/reference_loop.py [--images 32] [--side 128] [--rounds 9] [--threads 1]
    python benchmarks/reference_loop.py --profile [--recipe default] [--classes 6] [--side 64]
        [--precision bfloat16]

The plain loop is the paper as written: Pillow decodes in a DataLoader, the local features L and the
assigned global features S are formed, everything is float32 and eager. Network, crops, augmentation
and optimiser settings are the same, and so are the losses of float32, which are compared. A
processor that multiplies bfloat16 matrices runs the package's loop in bfloat16 too. Steps of the
loops run in turns, and their processor time is measured, with decoding: with one thread this is the
time of an idle core. Peak memory is measured in a separate process for each loop.

`--profile` prints medians of the parts of the package's step.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from infoseg_fast import precision
from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.augment import augmented
from infoseg_fast.batches import crops, data_info
from infoseg_fast.config import Settings
from infoseg_fast.cuda_graph import optimizer_for
from infoseg_fast.data.crops import CropSampler, held_in_memory
from infoseg_fast.recipe import recipe_class
from infoseg_fast.recipe.network import TrainedNetwork

CPU = torch.device("cpu")
STEPS = 10_000  # more than are run

Lap = Callable[[str], None]  # called with the name of the part of a step that ends


def settings_of(args: argparse.Namespace, data: Path) -> Settings:
    given = {"data": str(data), "classes": args.classes, "recipe": args.recipe, "steps": STEPS}
    given |= {"batch_size": args.images, "crop": args.side, "warmup": 0, "precision": args.precision}
    settings = Settings.create(given)
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


def own_steps(folder: Path, settings: Settings, lap: Lap = lambda part: None) -> Iterator[float]:
    """The steps of `infoseg_fast.train`, without its log and its checkpoints."""
    images = held_in_memory(settings.open("train"))
    data = data_info(images, settings)
    images.scaling, images.position = data.scaling, data.position
    recipe = recipe_class(settings.recipe)(settings, data).train()
    optimizer = optimizer_for(recipe, settings, CPU)
    last_term = watch(recipe.network, lap)
    for step, (batch, mask, _) in enumerate(crops(images, settings, CPU, 0, STEPS)):
        lap("data")
        batch, mask = augmented(batch, mask, settings, step, position=data.position)
        lap("augmentation")
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast(settings.precision, CPU):
            loss = recipe.loss(step, batch, mask)
        lap(last_term)
        loss.backward()
        lap("backbone")
        optimizer.step()
        lap("optimiser")
        recipe.after_step(step)
        lap("averaged weights")
        yield loss.item()


def watch(network: TrainedNetwork, lap: Lap) -> str:
    """Call `lap` within the loss of a network and its gradient. Returns the term that ends the loss.

    The backward pass takes the terms in reverse order: a hook on the result of a term runs when the
    gradients of the later ones are done.
    """
    last_term = "loss" if network.appearance is None else "appearance term"

    def after_backbone(_module: object, _given: object, features: tuple[Tensor, Tensor]) -> None:
        lap("backbone")
        register_multi_grad_hook(features, lambda _gradient: lap("loss"), mode="any")

    def after_loss(_module: object, _given: object, loss: Tensor) -> None:
        lap("loss")
        loss.register_hook(lambda _gradient: lap(last_term))

    network.model.register_forward_hook(after_backbone)
    network.criterion.register_forward_hook(after_loss)
    return last_term


def loops_of(args: argparse.Namespace, folder: Path) -> dict[str, Iterator[float]]:
    """The steps of each loop, by its name."""
    settings = settings_of(args, folder)
    loops = {"as written": plain_steps(folder, settings), "infoseg-fast": own_steps(folder, settings)}
    if precision.has_bfloat16(CPU):
        loops["infoseg-fast, bfloat16"] = own_steps(folder, dataclasses.replace(settings, precision="bfloat16"))
    return loops


def peak_memory(name: str, args: argparse.Namespace, folder: Path, sent) -> None:
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    steps = loops_of(args, folder)[name]
    for _ in range(2):
        next(steps)
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    sent.put(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10)


def compare(args: argparse.Namespace, folder: Path) -> None:
    loops = loops_of(args, folder)
    times, losses = {name: [] for name in loops}, {name: [] for name in loops}
    for turn in range(args.rounds + 1):
        for name, steps in loops.items():
            start = time.process_time()
            losses[name].append(next(steps))
            if turn:
                times[name].append(time.process_time() - start)
    written, own = "as written", "infoseg-fast"
    print("| loop | images per second of processor time | median ratio to as written |\n|---|---|---|")
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[written], taken, strict=True))
        print(f"| {name} | {args.images / statistics.median(taken):.1f} | {ratio:.2f} |")
    errors = [abs(a / b - 1) for a, b in zip(losses[written], losses[own], strict=True)]
    print(f"losses of float32 differ by {errors[0]:.1e} in the first step and by at most {max(errors):.1e} in "
          f"{len(errors)} steps", flush=True)  # fmt: skip
    context = multiprocessing.get_context("spawn")
    for name in loops:
        sent = context.Queue()
        process = context.Process(target=peak_memory, args=(name, args, folder, sent))
        process.start()
        print(f"peak memory of a process, {name}: {sent.get():.0f} MiB", flush=True)
        process.join()


def profile(args: argparse.Namespace, folder: Path) -> None:
    taken: dict[str, float] = {}
    now = time.process_time()

    def lap(part: str) -> None:
        nonlocal now
        before, now = now, time.process_time()
        taken[part] = taken.get(part, 0.0) + now - before

    rounds = []
    for _ in zip(range(args.rounds + 1), own_steps(folder, settings_of(args, folder), lap), strict=False):
        rounds.append(taken.copy())
        taken.clear()
    del rounds[0]  # warms up
    steps = [sum(parts.values()) for parts in rounds]
    print("| part of a step | ms | share |\n|---|---|---|")
    for part in rounds[0]:
        seconds = statistics.median(parts[part] for parts in rounds)
        share = statistics.median(parts[part] / step for parts, step in zip(rounds, steps, strict=True))
        print(f"| {part} | {1e3 * seconds:.2f} | {100 * share:.1f} % |")
    print(f"| whole step | {1e3 * statistics.median(steps):.2f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="the shares of a step instead")
    parser.add_argument("--recipe", default="paper", choices=("paper", "default"), help="of --profile")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of --profile")
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not args.profile and (args.recipe, args.precision) != ("paper", "float32"):
        parser.error("--recipe and --precision are for --profile: the plain loop is the paper's, in float32")
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 2 * args.images, args.side)
        (profile if args.profile else compare)(args, Path(folder))


if __name__ == "__main__":
    main()
