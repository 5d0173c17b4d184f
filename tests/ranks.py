"""Starts functions of `rank_jobs` in several processes of one Gloo group."""

from pathlib import Path

import rank_jobs
import torch
from processes import each_rank


def _enter(rank: int, number: int, folder: str, jobs: list) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=number)
    for name, *arguments in jobs:
        found = getattr(rank_jobs, name)(*arguments)
        if found is not None:
            torch.save(found, Path(folder, f"{name}.{rank}.pt"))
    torch.distributed.destroy_process_group()


def run_ranks(number: int, folder: Path, jobs: list[tuple]) -> None:
    """Call the functions in turn in each of `number` processes. What a function returns is in
    folder/NAME.RANK.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    each_rank(_enter, number, str(folder), jobs)
