"""A rehearsal of the first hour on a GPU, in one program: python mock_gpu.py FOLDER SECONDS

SECONDS is the limit of a stage. Triton's driver and what the stages call of torch.cuda have
stand-ins, sizes are tiny, and processes are forks of this one. One stage crashes and one hangs.
Among the checks one ends its process, one hangs, and one leaves the device unusable. No kernel
writes anything: two runs have the same bits where new memory is 0 (test_first_hour.py says how).
The PATH has a stand-in of compute-sanitizer, which hangs once.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from infoseg_fast import cuda_library
from infoseg_fast.bench import cuda, cuda_checks, first_hour, first_hour_stages, first_hour_training, providers
from infoseg_fast.bench import first_hour_library as library
from infoseg_fast.bench.first_hour import STAGES, Stage
from infoseg_fast.bench.mock_driver import mocked

torch.set_num_threads(1)
TINY = {"B": 4, "C": 8, "D": 6, "K": 3, "h": 6, "w": 5, "size": (24, 20)}
CPU = torch.device("cpu")
HANGS = 5  # number of the check that hangs


class Event:
    def __init__(self, **_):
        pass

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


class Graph:
    """Repeats the function that was captured: the times are those of the host."""

    act = None

    def replay(self):
        assert self.act is not None, "an empty graph"


@contextlib.contextmanager
def graph(made, **_):
    yield
    made.act = True


class Forked:
    """`subprocess.Popen` of one of this program's own processes, as a fork."""

    def __init__(self, command, stdin=None, stdout=None, stderr=None, start_new_session=False, **_):
        self.command = command
        given, sent = os.pipe()
        read, written = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            if start_new_session:
                os.setsid()
            os.dup2(given, 0)
            os.dup2(written, 1)
            if stderr == first_hour.subprocess.STDOUT:
                os.dup2(written, 2)
            os.closerange(3, 64)
            sys.stdin, sys.stdout, sys.stderr = (open(i, "rw"[i > 0], buffering=1, closefd=False) for i in range(3))  # noqa: SIM115
            code = 1
            try:
                code = first_hour.main(command[1:])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(given)
        os.close(written)
        self.stdin, self.stdout = open(sent, "w", buffering=1), open(read)  # noqa: SIM115
        if stdin is None:
            self.stdin.close()

    def wait(self, timeout=float("inf")):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        raise first_hour.subprocess.TimeoutExpired("", timeout)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


def broken():
    torch.cuda.synchronize = unusable
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


def unusable(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def checks(device, shape):
    own = [x for x in every(device, shape) if x[0] in ("assign channels last", "local_appearance channels last")]
    yield from own  # their outputs are 0, so they may fail
    yield "a check that passes", lambda: None
    yield "mutual_information_loss that fails", lambda: 1 / 0
    yield "one that ends its process", lambda: os._exit(3)
    yield "one that hangs", lambda: time.sleep(60)
    yield "one that leaves the device unusable", broken
    yield "a check after them", lambda: None


every = cuda_checks.checks
cuda_checks.checks = checks
chosen = providers.chosen_cases
wanted = ("jsd", "jsd bfloat16", "appearance 128x128")


def chosen_cases(use, names):
    return [replace(case, **TINY | {"C": min(case.C, 8)}) for case in chosen(use, names) if case.name in wanted]


providers.chosen_cases = chosen_cases
properties = SimpleNamespace(name="no GPU", major=9, minor=0, multi_processor_count=1, total_memory=2**30)
stand_ins = {
    "Stream": lambda *_: SimpleNamespace(wait_stream=lambda other: None),
    "current_stream": lambda *_: SimpleNamespace(wait_stream=lambda other: None),
    "stream": lambda stream: contextlib.nullcontext(),
    "Event": Event,
    "CUDAGraph": Graph,
    "graph": graph,
    "synchronize": lambda *_: None,
    "get_device_properties": lambda device: properties,
}
for name, stand_in in stand_ins.items():
    setattr(torch.cuda, name, stand_in)
cuda.copy_rate, cuda.FLUSH_BYTES = (lambda device: 1e6), 64
first_hour_stages.DEVICE = library.DEVICE = CPU
first_hour_training.DEVICE = "cpu"
first_hour_stages.COMMAND = ("python",)
first_hour_stages.REPEATS = library.REPEATS = first_hour_stages.CALLS = 2
first_hour_stages.WARPS, first_hour_stages.STAGES, first_hour_stages.PROGRAMS = (4, 8), (2,), (1, 8)
first_hour_stages.TRACED_STEPS = 2
first_hour_training.IMAGES, first_hour_training.SIDE = 8, 40
first_hour_training.SETTINGS |= {"steps": 8, "batch_size": 4, "crop": 32, "log_every": 2, "checkpoint_every": 4}
first_hour_training.SETTINGS |= {"width": 4, "dim": 4, "overcluster": 1.0, "refine": False}
names = "default, without graph", "default", "default, resumed at half"
first_hour_training.RUNS = {"wrong": {"jitter": -1.0}, **{name: {} for name in names}}
first_hour_stages.FUNCTIONS |= {"hangs": lambda table: time.sleep(60), "crashes": lambda table: os.abort()}


def sanitizer_hangs(table):
    os.environ["SANITIZER"] = "hangs"
    first_hour_stages.sanitizer(table)


first_hour_stages.FUNCTIONS["sanitizer_hangs"] = sanitizer_hangs
# The library of a machine without a GPU does not run: assignments and counts are those of the host.
cuda_library.unavailable = lambda: None
cuda_library.LIBRARY = Path(__file__)
own_assignment = library.linear_sum_assignment
library.linear_sum_assignment = lambda cost, backend: own_assignment(cost, backend="reference")
first_hour.subprocess = SimpleNamespace(**vars(first_hour.subprocess) | {"Popen": Forked})
torch.compile = lambda function, **_: function
own_run = first_hour.Worker.run


def run_with_limit(self, number, seconds):
    hangs = self.process.command[-1] == "checks" and number == HANGS
    return own_run(self, number, 0.5 if hangs else 60.0)


first_hour.Worker.run = run_with_limit


def main():
    # What is imported now is imported in none of the forks.
    with mocked(compiles=False, keep=False), contextlib.redirect_stdout(None), contextlib.suppress(AssertionError):
        first_hour_training.Run("default", steps=2).close()
        next(checks(CPU, cuda_checks.SMALL))[1]()
    seconds = float(sys.argv[2])
    stages = [stage._replace(seconds=seconds) for stage in STAGES]
    stages[2:2] = [Stage("crashes", seconds, "a stage that crashes"), Stage("hangs", 1, "a stage that hangs")]
    stages.append(Stage("sanitizer_hangs", 1, "a compute-sanitizer that hangs"))
    with mocked(compiles=False, keep=False):
        sys.exit(1 if first_hour.run_stages(Path(sys.argv[1]), stages, ("python",)) else 0)


if __name__ == "__main__":
    main()
