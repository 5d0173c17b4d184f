"""The command `infoseg`.

Exit status: 0 on success; 2 on a usage or data error, with one line that names the file or option and what to do; 130
when interrupted.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from .config import TrainConfig, option
from .errors import DataError

PROGRAM = "infoseg"


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    from .checkpoint import CHECKPOINTS
    from .data import NAMES, SPLITS

    top = Parser(prog=PROGRAM, description="Unsupervised semantic segmentation by mutual information maximisation.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    data = f"{', '.join(NAMES)}, or a folder with images/ (and labels/, train.txt, eval.txt, classes.txt if any)"

    def add(name: str, function, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(function=function)
        return command

    train = add("train", run_train, "Train on unlabelled images; evaluate and report where there are labels.")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on with the run at its last checkpoint")
    for field in dataclasses.fields(TrainConfig):
        how = dict(field.metadata)
        help = data if field.name == "data" else how.pop("help")
        if field.default not in (None, "") and not how.get("choices"):
            help += f" (default: {field.default})"
        how.pop("help", None)
        if how.pop("switch", False):
            how["action"] = argparse.BooleanOptionalAction
        elif not how.get("choices"):
            how["metavar"] = {"data": "NAME|DIR", "crop": "PX"}.get(
                field.name, "X" if how.get("type") is float else "N"
            )
        # Absent when not given, so that a resumed run knows what is asked anew.
        train.add_argument(option(field.name), default=argparse.SUPPRESS, help=help, **how)

    bench = add("bench", run_bench, "Time the ops beside the best PyTorch of the same algebra.")
    bench.add_argument("ops", nargs="*", metavar="OP", help="loss, assign or segment; all by default")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    bench.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows to FILE")
    bench.add_argument("--threads", type=int, default=1, metavar="N", help="threads of PyTorch (default: 1)")
    bench.add_argument("--repeats", type=int, default=30, metavar="N", help="timed calls of each (default: 30)")
    bench.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="time torch.compile too")

    evaluate = add("eval", run_eval, "Score a run against ground truth.")
    evaluate.add_argument("run", type=Path, metavar="RUN")
    evaluate.add_argument("--data", required=True, metavar="NAME|DIR", help=data)
    evaluate.add_argument("--split", default="eval", choices=SPLITS, help="which images (default: eval)")
    evaluate.add_argument("--checkpoint", default="last", choices=CHECKPOINTS, help="default: last")
    evaluate.add_argument("--json", action="store_true", help="print the scores as JSON and nothing else")

    predict = add("predict", run_predict, "Write an 8-bit label PNG for each image, at its size.")
    predict.add_argument("run", type=Path, metavar="RUN")
    predict.add_argument("sources", type=Path, nargs="+", metavar="IMAGE|DIR")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder the label PNGs are written to")
    predict.add_argument(
        "--overlay", action="store_true", help="write <stem>.overlay.png too, in colour over the image"
    )
    predict.add_argument(
        "--match", action="store_true", help="write classes (by the run's last evaluation) instead of clusters"
    )
    predict.add_argument("--checkpoint", default="last", choices=CHECKPOINTS, help="default: last")
    for command in (evaluate, predict):
        command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")

    prepare = add("prepare", run_prepare, "Write a known set out as a folder that --data takes.")
    prepare.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to be made")

    add("env", run_env, "Print versions and backends, and why one is missing.")
    return top


def run_train(arguments: argparse.Namespace) -> None:
    from .train import train

    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(TrainConfig) if hasattr(arguments, f.name)}
    train(given, arguments.out, arguments.resume)


def run_bench(args) -> None:
    import torch

    from . import bench

    known = {case.op for case in bench.CASES} | {case.name for case in bench.CASES}
    for name in args.ops:
        if name not in known:
            raise DataError(f"OP: {name!r} is none of {', '.join(sorted(known))}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device: no CUDA device can be used here; take cpu")
    torch.set_num_threads(max(args.threads, 1))
    bench.run(args.ops, args.device, max(args.repeats, 3), args.compile, args.csv)


def run_eval(arguments: argparse.Namespace) -> None:
    from .checkpoint import load as load_state
    from .data import open_set
    from .evaluate import as_text, evaluate
    from .segmenter import load, record_evaluation
    from .train import pick_device

    device = pick_device(arguments.device)
    segmenter = load(arguments.run, arguments.checkpoint, device)
    images = open_set(arguments.data, arguments.split, num_classes=segmenter.num_clusters, scale=segmenter.scale)
    check_channels(segmenter, images.channels, images.name)
    scores = evaluate(segmenter, images, device, progress=not arguments.json)
    step = load_state(arguments.run, arguments.checkpoint)["step"]
    record_evaluation(arguments.run, arguments.checkpoint, step, arguments.split, scores)
    if arguments.json:
        print(json.dumps(scores))
    else:
        print(f"checkpoint {arguments.checkpoint} of step {step}, {arguments.split} split of {images.name}:")
        print(as_text(scores, images.classes))


def check_channels(segmenter, channels: int, name: str) -> None:
    expected = segmenter.model.mean.numel()
    if channels != expected:
        raise DataError(f"--data {name} has images of {channels} channels; the run was trained on {expected}")


def run_predict(arguments: argparse.Namespace) -> None:
    from .predict import predict
    from .segmenter import load
    from .train import pick_device

    device = pick_device(arguments.device)
    segmenter = load(arguments.run, arguments.checkpoint, device)
    number = predict(segmenter, arguments.sources, arguments.out, device, arguments.overlay, arguments.match)
    print(f"{number} label maps written to {arguments.out}")


def run_prepare(arguments: argparse.Namespace) -> None:
    from .data.export import export_landcover

    number = export_landcover(arguments.name, arguments.out)
    print(f"{number} images written to {arguments.out}")


def run_env(arguments: argparse.Namespace) -> None:
    from .env import as_text

    print(as_text())


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    arguments = parser().parse_args(argv)
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the user chose the files; aerial images are larger than Pillow's guard
    try:
        arguments.function(arguments)
    except DataError as error:
        print(f"{PROGRAM} {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM} {arguments.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
