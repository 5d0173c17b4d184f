"""Runs the commands of the README and of docs/ as a newcomer would, in a fresh clone.

    python tests/cold_read.py [--page docs/maps.md] [--list]

A command is a line of an indented block, or a code span, that begins with a program of `PROGRAMS`.
It runs in a folder that has what the pages name: DIR, scene.tif, scene.png and so on. Trainings are
shortened. What cannot run here is listed with its reason; its options and its extras are checked
all the same. Exit status 1 if a command fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from conftest import write_folder
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("infoseg", "python", "pip", "make", "torchrun", "pytest")
TINY = "--steps 2 --crop 32 --batch-size 4"
SMALL_NETWORK = " --width 4 --dim 8 --depth 1"
# What a command would need: the first pattern that it holds counts.
NOT_RUN = {
    r"^make ": "the CI runs it, or a GPU is needed",
    r"^pip ": "the environment has it",
    r"--device cuda|aot|roofline": "needs a GPU or compiles for minutes",
    r"coco|potsdam|RAW": "needs a raw download",
    r"timm:": "fetches weights",
    r"benchmarks\.backbones": "needs two packages that are not dependencies",
    r"^pytest": "runs tests",
    r"class_purity": "a test builds this op",
    r"^infoseg (train|eval|predict|baseline|prepare|bench)( [\w-]+| --json)?$": "the name of a command",
    r"\.\.\.|\||METHOD| N\b|NAME|IMAGE|\[": "a pattern, not a command",
    r"torchrun": "tests/test_ranks.py starts ranks",
    r"^python benchmarks/": "measures for minutes",
}
TINY_BACKBONE = """
from torch import nn

class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, stride=2 if i in (1, 3) else 1, padding=1)
                                    for i in range(12))
    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x).relu()
            maps.append(x)
        return maps

def net():
    import torch
    torch.manual_seed(0)
    return Maps().eval()
"""


def commands(page: Path) -> list[str]:
    """The distinct commands of a page, in order. Comments and continuation lines are resolved."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\\\n\s+", "", text)
    start = rf"(?:{'|'.join(PROGRAMS)}) "
    block = re.findall(rf"^ {{4}}({start}.*)$", text, flags=re.MULTILINE)
    spans = [span.replace("\n", " ") for span in re.findall(rf"`({start}[^`]+)`", text)]
    found = [re.sub(r"\s+#.*$|\s{2,}.*$", "", line).strip() for line in (*block, *spans)]
    return list(dict.fromkeys(line for line in found if len(line.split()) > 1))


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), None)


def prepare(folder: Path, clone: Path) -> None:
    """The files that the pages name."""
    import rasterio

    shutil.copy(clone / "examples/own_recipe.py", folder)
    (folder / "benchmarks/timings").mkdir(parents=True)
    write_folder(folder / "DIR", number=8, side=40)
    scene = np.random.default_rng(0).integers(1, 255, (4, 96, 96)).astype(np.uint8)
    Image.fromarray(scene[:3].transpose(1, 2, 0)).save(folder / "scene.png")
    transform = rasterio.transform.from_origin(4e5, 5.8e6, 10, 10)
    profile = {"driver": "GTiff", "width": 96, "height": 96, "count": 4, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(folder / "scene.tif", "w", transform=transform, **profile) as file:
        file.write(scene)
    (folder / "names.txt").write_text("\n".join(f"kind {i}" for i in range(6)) + "\n")
    (folder / "tiny.py").write_text(TINY_BACKBONE)


def shortened(command: str, folder: Path) -> str:
    """The command with little work, and with its placeholders filled in."""
    command = command.replace("MODULE:FUNCTION", "tiny:net")
    if re.search(r"^infoseg train", command):
        shutil.rmtree(folder / "RUN", ignore_errors=True)
        command += f" {TINY}" + ("" if "--backbone" in command else SMALL_NETWORK)
        if "--resume" in command:
            command = f"{command.replace(' --resume', '')} && {command} --steps 3"
    elif " RUN" in command and not (folder / "RUN").exists():  # the page takes the run of another page
        command = f"infoseg train --data DIR --out RUN {TINY}{SMALL_NETWORK} && {command}"
    if command.startswith("infoseg bench"):
        command = command.replace("FILE", "rows.csv").replace("bench --", "bench assign --")
        command += " --repeats 3 --no-compile"
        if "--compare" in command:
            command += " || test $? = 1"  # a case is slower: three repeats are noisy
    if command.startswith("infoseg prepare"):
        command = command.replace("--out DIR", "--out SET")
    return re.sub(
        r"(^|&& )infoseg", rf"\1{sys.executable} -m infoseg_fast", re.sub(r"^python", sys.executable, command)
    )


def check_words(command: str, environment: dict, clone: Path) -> str | None:
    """What is wrong with the options, extras or files that a command names, without running it."""
    project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", project, flags=re.MULTILINE)
    if command.startswith("pip"):
        named = re.findall(r"\[([\w,]+)\]", command)
        missing = [one for group in named for one in group.split(",") if one not in extras]
        return f"no extra {missing[0]}" if missing else None
    if command.startswith("make"):
        target = command.split()[1]
        return None if re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) else "no such target"
    script = re.search(r"benchmarks/[\w/]+\.py", command)
    if script and not (ROOT / script[0]).is_file():
        return f"no file {script[0]}"
    words = re.search(r"(?:infoseg|infoseg_fast) (\w+)", command)
    if words is None or script:
        return None
    helped = subprocess.run(
        [sys.executable, "-m", "infoseg_fast", words[1], "--help"],
        cwd=clone, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if helped.returncode:
        return f"no command {words[1]}"
    unknown = [x for x in re.findall(r" (--[a-z-]+)", command.split(words[1], 1)[1]) if x not in helped.stdout]
    return f"no option {unknown[0]}" if unknown else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", nargs="+", type=Path, help="only these pages")
    parser.add_argument("--list", action="store_true", help="list the commands and run none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone, failed, ran = Path(temporary, "clone"), 0, set()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for built in (ROOT / "infoseg_fast").glob("*.so"):
            shutil.copy(built, clone / "infoseg_fast")
        environment = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        pages = [clone / "README.md", clone / "CONTRIBUTING.md", *sorted((clone / "docs").rglob("*.md"))]
        if args.page:
            pages = [clone / page for page in args.page]
        for page in pages:
            folder = Path(temporary, "work", page.stem)
            for command in commands(page):
                reason = reason_not_to_run(command)
                state, detail = "ok", ""
                if args.list:
                    state, detail = ("listed", reason or "runs")
                elif reason is not None:
                    wrong = check_words(command, environment, clone)
                    state, detail = ("FAILED", wrong) if wrong else ("not run", reason)
                elif not ("RUN" in command or "DIR" in command or "scene" in command) and command in ran:
                    state, detail = "ok", "on another page"
                else:
                    if not folder.is_dir():
                        folder.mkdir(parents=True)
                        prepare(folder, clone)
                    line = shortened(command, folder)
                    done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
                    if done.returncode:
                        state, detail = "FAILED", (done.stderr.strip().splitlines() or ["without a message"])[-1]
                    ran.add(command)
                failed += state == "FAILED"
                print(f"{state:8} {page.relative_to(clone)}: {command}   {detail}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
