"""The command `infoseg`.

Exit status: 0 on success; 1 when some inputs failed, each named at the end; 2 on a usage or data
error, with one line that names the file or option; 130 when interrupted; 143 when ended by SIGTERM
or SIGUSR1.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from . import __version__
from .config import GROUPS, Settings, option, pick_device
from .distributed.world import LostRankError
from .errors import DataError, printable
from .recipe import BUILT_IN, COMMON_DEFAULTS, recipe_class
from .signals import Stopped, StopSignals

PROGRAM = "infoseg"
SHARDS = "shards"  # NAME of `infoseg prepare`
# The choices that a benchmark's protocol leaves open (data/protocols.py).
PREPARE_OPTIONS = {
    "partition": {"metavar": "P", "help": "iid: train and score on the same images (default); iid+: score on others"},
    "unlabelled": {"metavar": "U", "help": "ignore (default), or iic: as the published code counts such pixels"},
    "split_seed": {"type": int, "metavar": "N", "help": "potsdam: seed of the choice of held-out patches (default: 0)"},
    "min_side": {"type": int, "metavar": "PX", "help": "coco-persons: least side of an image (default: 360)"},
    "person_min": {"type": float, "metavar": "X", "help": "coco-persons: least share of persons (default: 0.1)"},
    "person_max": {"type": float, "metavar": "X", "help": "coco-persons: greatest share of persons (default: 0.9)"},
    "crowd": {"metavar": "C", "help": "coco-persons: crowd regions are person (default) or ignore"},
}
BACKBONE_OPTIONS = ("backbone", "backbone_weights", "local_index")  # settings that infoseg baseline takes too


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line. A value may be any negative number or list of numbers."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        # argparse takes -9999 for a value, but -3.4e+38, -inf and -2,-1 for options.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf$)")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("takes a path, not ''")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    from .checkpoint import CHECKPOINTS
    from .data import NAMES
    from .data.protocols import PROTOCOLS
    from .scores.baselines import METHODS

    top = Parser(prog=PROGRAM, description="Unsupervised semantic segmentation by mutual information maximisation.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    data = (
        f"{', '.join(NAMES)}, a folder with images/ (and labels/, train.txt, eval.txt, classes.txt if any), a folder "
        "that infoseg prepare made, WebDataset shards DIR/shards-{0000..0099}.tar, an image file, "
        "or a .txt file that lists image files"
    )

    def add(name: str, function, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(function=function)
        return command

    train = add("train", run_train, "Train on unlabelled images; evaluate and report where there are labels.")
    train.add_argument("--out", type=path, required=True, metavar="RUN", help="folder of the run")
    train.add_argument("--resume", action="store_true", help="continue the run from its last checkpoint")
    add_settings(train, data)

    # fmt: off
    bench = add("bench", run_bench, "Time the ops beside the best PyTorch of the same algebra.")
    bench.add_argument("ops", nargs="*", metavar="OP", help="name of an op or of one of its cases (default: all ops)")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to time on (default: cpu)")
    bench.add_argument("--csv", type=path, metavar="FILE", help="also write the rows to FILE")
    bench.add_argument("--threads", type=int, default=1, metavar="N", help="threads of PyTorch (default: 1)")
    bench.add_argument(
        "--repeats", type=int, default=30, metavar="N", help="timed calls of each provider (default: 30)")
    bench.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="time torch.compile too (default: True)")
    bench.add_argument(
        "--compare", type=path, metavar="FILE",
        help="compare with the rows of an earlier --csv FILE. Exit status 1 if a case is slower by more than 15 %%, "
        "by its time and relative to plain PyTorch")

    run = "folder that infoseg train wrote"
    evaluate = add("eval", run_eval, "Score a run against ground truth.")
    evaluate.add_argument("run", type=path, metavar="RUN", help=run)
    evaluate.add_argument("--data", required=True, metavar="NAME|DIR", help=data)

    predict = add(
        "predict", run_predict,
        "Write a label map for each image, at its size: an 8-bit PNG, or a GeoTIFF where the image has a "
        "georeference. Pixels without data are 255. Maps that an earlier call finished are kept.")
    predict.add_argument("run", type=path, metavar="RUN", help=run)
    predict.add_argument(
        "sources", type=path, nargs="+", metavar="IMAGE|DIR",
        help="image files, and folders whose images are all taken")
    predict.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="folder the label maps are written to")
    predict.add_argument(
        "--overlay", action="store_true", help="write <stem>.overlay.png too: the labels in colour over the image")
    predict.add_argument(
        "--match", action="store_true",
        help="write classes of the ground truth instead of clusters, as the last infoseg eval matched them")
    predict.add_argument(
        "--confidence", action="store_true",
        help="write <stem>.confidence.png or .tif too: the probability of the label in per cent, 255 without data")
    predict.add_argument("--names", type=path, metavar="FILE", help="names of the clusters, one a line, in UTF-8")
    predict.add_argument(
        "--areas", type=path, metavar="FILE.csv",
        help="write the pixels and the area (in map units) of each class in each image")
    predict.add_argument(
        "--polygons", type=path, metavar="FILE.gpkg",
        help="write the regions of equal labels of georeferenced images (needs the extra [geo])")

    export = add("export", run_export, "Write a model that maps images to labels and runs without this package.")
    export.add_argument("run", type=path, metavar="RUN", help=run)
    export.add_argument("--format", required=True, choices=("onnx", "torchscript"), help="format of the model")
    export.add_argument("--out", type=path, required=True, metavar="FILE", help="file to write")

    baseline = add("baseline", run_baseline, "Score a method that trains no network, on the pixels of infoseg eval.")
    baseline.add_argument("method", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    baseline.add_argument("--data", required=True, metavar="NAME|DIR", help=data)
    baseline.add_argument(
        "--classes", type=int, metavar="N",
        help="number of clusters (default: the number of classes of the ground truth)")
    baseline.add_argument(
        "--samples", type=int, default=500_000, metavar="N",
        help="number of pixels that the method is fitted to (default: 500000)")
    baseline.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random numbers (default: 0)")
    fields = {field.name: field.metadata for field in dataclasses.fields(Settings)}
    for name in BACKBONE_OPTIONS:
        how = {key: fields[name][key] for key in ("type", "metavar") if key in fields[name]}
        baseline.add_argument(option(name), help=f"kmeans-backbone: {fields[name]['help']}", **how)
    for command in (evaluate, baseline):
        command.add_argument(
            "--split", default="eval", metavar="SPLIT",
            help="images to score: eval, train or all; val too, where a prepared benchmark has it (default: eval)")
        command.add_argument("--json", action="store_true", help="print the scores as JSON and nothing else")
    for command in (predict, export):
        command.add_argument(
            "--classes", type=int, metavar="N",
            help="number of clusters of the maps, 2 to the over-clusters of the run (default: as in training)")
    for command in (evaluate, predict, export):
        command.add_argument(
            "--checkpoint", default="last", choices=CHECKPOINTS, help="checkpoint of the run (default: last)")
    for command in (evaluate, predict):
        command.add_argument(
            "--device", default="auto", choices=("auto", "cpu", "cuda"), help="device that computes (default: auto)")

    names = (*PROTOCOLS, *NAMES, SHARDS)
    prepare = add("prepare", run_prepare, "Verify a known set and write it as a folder that --data takes.")
    prepare.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    prepare.add_argument("--root", type=path, metavar="RAW", help="the raw download (see docs/benchmarks.md)")
    prepare.add_argument("--out", type=path, metavar="DIR", help="folder to write")
    prepare.add_argument("--check", action="store_true", help="read and verify every raw file, and write nothing")
    prepare.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as there are cores)")
    for name, how in PREPARE_OPTIONS.items():
        prepare.add_argument(option(name), default=argparse.SUPPRESS, **how)
    # fmt: on

    add("env", run_env, "Print the versions, the backends, and why a backend is missing.")
    return top


def add_settings(command: argparse.ArgumentParser, data: str) -> None:
    """An option for each field of `Settings`, in its group, with its default."""
    by_recipe = {name: {**COMMON_DEFAULTS, **recipe_class(name).defaults} for name in BUILT_IN}
    groups = {name: command.add_argument_group(name) for name in GROUPS}
    for field in dataclasses.fields(Settings):
        how = dict(field.metadata)
        help = data if field.name == "data" else how["help"]
        default = by_recipe[Settings.recipe].get(field.name, field.default)
        if default not in (None, ""):
            others = [
                f"; {name} recipe: {values[field.name]}"
                for name, values in by_recipe.items()
                if values.get(field.name, default) != default
            ]
            help += f" (default: {default}{''.join(others)})"
        argument = {key: how[key] for key in ("type", "choices", "metavar") if key in how}
        if how.get("switch"):
            argument = {"action": argparse.BooleanOptionalAction}
        elif not argument.keys() & {"choices", "metavar"}:
            argument["metavar"] = "X" if argument.get("type") is float else "N"
        # Absent unless given, so that a resumed run knows which settings are given anew.
        groups[how["group"]].add_argument(option(field.name), default=argparse.SUPPRESS, help=help, **argument)


def run_train(arguments: argparse.Namespace) -> None:
    from .allocator import keep_freed_memory
    from .train import train

    keep_freed_memory()
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Settings) if hasattr(arguments, f.name)}
    train(given.pop("data", None), arguments.out, resume=arguments.resume, **given)


def check_writable(name: str, file: Path) -> None:
    """Raise DataError unless the file can be written."""
    if file.is_dir():
        raise DataError(f"{name} {file} is a folder; give the name of a file")
    if not file.parent.is_dir():
        raise DataError(f"{name} {file}: there is no folder {file.parent}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise DataError(f"{name} {file} cannot be written: no permission")


def run_bench(args) -> int:
    import torch

    from . import kernels
    from .allocator import keep_freed_memory
    from .bench import cpu as bench
    from .bench import cuda as bench_cuda
    from .bench import regressions
    from .bench.providers import chosen_cases

    keep_freed_memory()
    cases = chosen_cases(args.device, ())
    known = {case.op for case in cases} | {case.name for case in cases}
    for name in args.ops:
        if name not in known:
            raise DataError(f"OP: {name!r} is none of {', '.join(sorted(known))}")
    for name, least in (("threads", 1), ("repeats", 3)):
        if getattr(args, name) < least:
            raise DataError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    before = None if args.compare is None else regressions.read(args.compare)
    if args.csv is not None:
        check_writable("--csv", args.csv)  # before minutes of measurements
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
        rows, wrong = bench.run(args.ops, args.repeats, args.compile, args.csv)
        for line in wrong:
            print(f"{PROGRAM} bench: {line}", file=sys.stderr)
        slower = 0 if before is None or not rows else regressions.report(rows, before, args.compare)
        return 1 if wrong or slower else 0
    if before is not None:
        raise DataError("--compare is for --device cpu")
    if not torch.cuda.is_available():
        raise DataError("--device: no CUDA device can be used here; take cpu")
    if kernels.unavailable():
        raise DataError(f"--device: the Triton kernels cannot run: {kernels.unavailable()}")
    device = torch.device("cuda", torch.cuda.current_device())
    if failed := bench_cuda.run(args.ops, device, args.repeats, args.compile, args.csv):
        raise DataError(f"{failed} checks of the Triton kernels failed on this device; nothing was timed")
    return 0


def run_eval(arguments: argparse.Namespace) -> None:
    from .data import open_set
    from .run_folder import RunFolder
    from .scores.evaluate import add_training, as_text, evaluate
    from .segmenter import load_with_step

    device = pick_device(arguments.device)
    segmenter, step = load_with_step(arguments.run, arguments.checkpoint, device)
    data = segmenter.labelling.data
    images = open_set(
        arguments.data, arguments.split, num_classes=segmenter.num_clusters, scale=data.scale, options=data.reading
    )
    scores = evaluate(segmenter, images, device, progress=not arguments.json)
    run = RunFolder(arguments.run)
    add_training(scores, run.read_config()["config"]["loss_mask"], arguments.checkpoint)
    if arguments.json:
        print(json.dumps(scores, allow_nan=False))
    else:
        print(f"checkpoint {arguments.checkpoint} of step {step}, {arguments.split} split of {images.name}:")
        print(as_text(scores, images.classes))
    run.record_evaluation(arguments.checkpoint, step, arguments.split, images.classes, scores)  # RUN may be read-only


def run_predict(arguments: argparse.Namespace) -> int:
    from .allocator import keep_freed_memory
    from .maps import Products, predict
    from .segmenter import load

    keep_freed_memory()
    segmenter = load(arguments.run, arguments.checkpoint, pick_device(arguments.device))
    if arguments.classes not in (None, segmenter.num_clusters):
        if arguments.match:
            raise DataError(f"--match needs the {segmenter.num_clusters} clusters of the training; leave --classes out")
        segmenter = segmenter.with_clusters(arguments.classes)
    products = Products(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Products)})
    outcome = predict(segmenter, arguments.sources, arguments.out, products)
    print(f"{outcome.written} label maps written to {arguments.out}")
    if outcome.skipped:
        print(f"{outcome.skipped} were there already, of the same checkpoint and options")
    if outcome.replaced:
        print(f"{outcome.replaced} of them replace files that were there, of another checkpoint or other options")
    for line in (*outcome.notes, *outcome.failures):
        print(f"{PROGRAM} predict: {printable(line)}", file=sys.stderr)
    return 1 if outcome.failures else 0


def run_export(arguments: argparse.Namespace) -> None:
    from .export import export
    from .segmenter import load

    segmenter = load(arguments.run, arguments.checkpoint)
    if arguments.classes is not None:
        segmenter = segmenter.with_clusters(arguments.classes)
    export(segmenter, arguments.format, arguments.out)
    print(f"{arguments.format} model written to {arguments.out}: images [B, c, H, W] in [0, 1] to labels [B, H, W]")


def run_prepare(arguments: argparse.Namespace) -> None:
    from .data.export import export_landcover, write_shards
    from .data.prepare import prepare
    from .data.protocols import PROTOCOLS

    given = {name: getattr(arguments, name) for name in PREPARE_OPTIONS if hasattr(arguments, name)}
    if arguments.out is None and not arguments.check:
        raise DataError("--out is missing: the folder to be made (or --check, to verify the raw files only)")
    if arguments.name == SHARDS:
        if given or arguments.check or arguments.workers is not None or arguments.root is None:
            raise DataError("shards takes --root, a folder as --data takes it, and --out; no other option")
        images, pattern = write_shards(arguments.root, arguments.out)
        print(f"{images} images written; --data {shlex.quote(pattern)}")
        return
    if arguments.name not in PROTOCOLS:
        if given or arguments.root or arguments.check or arguments.workers is not None:
            raise DataError(f"{arguments.name} comes from installed packages; it takes --out and no other option")
        number = export_landcover(arguments.name, arguments.out)
        print(f"{number} images written to {arguments.out}")
        return
    if arguments.root is None:
        raise DataError(f"--root is missing: the folder of the raw {arguments.name} files (see docs/benchmarks.md)")
    if arguments.workers is not None and arguments.workers < 1:
        raise DataError(f"--workers must be at least 1, not {arguments.workers}")
    manifest = prepare(
        arguments.name, arguments.root, arguments.out, given, check=arguments.check, workers=arguments.workers
    )
    parts = ", ".join(f"{part} {number:,}" for part, number in manifest["parts"].items())
    found = f"{manifest['images']:,} images ({parts}), {manifest['framed']:,} of them framed with zeros"
    print(f"{found}: {'all as the protocol has them' if arguments.check else f'written to {arguments.out}'}")
    if manifest["selection"]:
        print(f"selection: {manifest['selection']}")


def run_baseline(arguments: argparse.Namespace) -> None:
    from .scores.baselines import baseline
    from .scores.evaluate import as_text

    given = [name for name in BACKBONE_OPTIONS if getattr(arguments, name) is not None]
    if arguments.method != "kmeans-backbone" and given:
        raise DataError(f"{option(given[0])} belongs to the baseline kmeans-backbone, not to {arguments.method}")
    if arguments.method == "kmeans-backbone" and not arguments.backbone:
        raise DataError("kmeans-backbone needs --backbone timm:NAME or --backbone MODULE:FUNCTION")
    scores, classes = baseline(
        arguments.method, arguments.data, arguments.split, num_clusters=arguments.classes, samples=arguments.samples,
        seed=arguments.seed, progress=not arguments.json,
        backbone={"backbone": arguments.backbone, "weights": arguments.backbone_weights,
                  "local_index": arguments.local_index or (-1,)},
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(scores, allow_nan=False))
    else:
        print(f"baseline {arguments.method}, {arguments.split} split of {arguments.data}:")
        print(as_text(scores, classes))


def run_env(arguments: argparse.Namespace) -> None:
    from .env import as_text

    print(as_text())


class PipeSafe:
    """A text stream that drops text once its reader has closed the pipe. The command continues and
    writes its files. A stream that cannot be written for another reason raises DataError.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):  # a full disk
                raise DataError(f"{self._stream.name} could not be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for file names that are not UTF-8
    out, err = (cast(TextIO, PipeSafe(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            return run(argv)
        finally:
            out.flush()
            err.flush()


def run(argv: Sequence[str] | None) -> int:
    """The exit status of a command. Its errors are printed in one line."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("infoseg_fast").setLevel(logging.INFO)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the package reports a damaged file itself
    try:
        try:
            arguments = parser().parse_args(argv)
        finally:
            sys.stdout.flush()
    except DataError as error:  # the help or the version could not be written
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the user chose the files; aerial images are larger than Pillow's guard
    try:
        with StopSignals():
            status = arguments.function(arguments)
            sys.stdout.flush()
    except DataError as error:
        print(f"{PROGRAM} {arguments.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # from a path that the user gave
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        print(f"{PROGRAM} {arguments.command}: {printable(f'{where}{error.strerror or error}')}", file=sys.stderr)
        return 2
    except LostRankError as error:
        print(f"{PROGRAM} {arguments.command}: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"{PROGRAM} {arguments.command}: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(f"{PROGRAM} {arguments.command}: interrupted", file=sys.stderr)
        return 130
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
