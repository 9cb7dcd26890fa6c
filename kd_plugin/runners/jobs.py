"""A long job in shards: shared among jobs, processes or machines, and gone on with after a kill."""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, List, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.files.shards import remove_leftovers
from kd_plugin.runners import places as engines
from kd_plugin.runners.progress import progress_bar

if TYPE_CHECKING:  # not needed by the verbs without models, and slow to import
    import torch


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-shards", type=int, default=1, metavar="N", help="jobs that share the work (Slurm arrays)"
    )
    parser.add_argument("--shard-id", type=int, default=0, metavar="I", help="which of them this is, from 0")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes of this job (default: one a GPU, else one)"
    )
    parser.add_argument("--runner", default="local", choices=engines.RUNNERS, help="(default: %(default)s)")


def check_job(args: argparse.Namespace) -> None:
    """Refuse a shard that is none of the job's."""
    if args.shard_id >= args.num_shards:
        raise KDPluginError(
            f"--shard-id {args.shard_id}: --num-shards {args.num_shards} has the shards 0 … {args.num_shards - 1}. "
            "Remedy: one of these, or a larger --num-shards"
        )


def work(
    args: argparse.Namespace,
    folder: Path,
    plans: Sequence[Any],
    finished: Callable[[Any], bool],
    size: Callable[[Any], int],
    session: Any,
    make_session: Callable[[int], Any],
    name: str,
    unit: str,
) -> List[Any]:
    """Do those of this job's shards that are not finished.

    Args:
        plans: of all shards, each with a `name`
        size: of a shard, in the progress bar's unit
        session: does a shard when called with its plan, in this process; tells its `progress(size)` how far it is
        make_session: the same in another process, of the worker's number; can be pickled

    Returns:
        the plans of this job's shards
    """
    mine = list(plans[args.shard_id :: args.num_shards])
    remove_leftovers(folder, [plan.name for plan in mine])
    todo = [plan for plan in mine if not finished(plan)]
    total, left = sum(map(size, mine)), sum(map(size, todo))
    workers = _workers(args)
    with progress_bar(name, total, unit, initial=total - left, unit_scale=True) as bar:
        start = functools.partial(_here, session) if works_here(args) else make_session
        for plan in engines.run(todo, start, bar.update, args.runner, workers):
            if args.runner == "ray":
                bar.update(size(plan))
    return mine


def works_here(args: argparse.Namespace) -> bool:
    """Whether `work` does the shards in this process, and not in others that it starts."""
    return args.runner == "local" and _workers(args) == 1


def _workers(args: argparse.Namespace) -> int:
    import torch

    return int(args.workers) or max(1, torch.cuda.device_count())


def device_of(worker: int) -> "torch.device":
    """Where the worker of this number computes: on a machine with several GPUs each takes its own."""
    import torch

    return (
        torch.device("cuda", worker % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def missing(folder: Path, mine: Sequence[Any], plans: Sequence[Any], finished: Callable[[Any], bool]) -> str:
    """What to say where other jobs have not finished yet."""
    left = sum(not finished(plan) for plan in plans)
    return f"{folder}: this job's {len(mine)} shards are finished, {left} of other jobs are missing"


def _here(session: Any, number: int) -> Any:
    return session
