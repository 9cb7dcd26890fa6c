"""Averages the last checkpoints of a training run, by epochs or by updates, into one without optimizer state.

`python -m kd_plugin.checkpoints.average`, or examples/translation/average_checkpoints.py.
"""

import argparse
import functools
import os
import pathlib
import re
import sys
from typing import Any, Dict, List, Sequence

import torch
from omegaconf import OmegaConf

from kd_plugin.checkpoints.read import count_parameters, read_checkpoint
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, temporary_beside
from kd_plugin.files.protection import check_outputs, place

EPOCH = re.compile(r"checkpoint(\d+)\.pt$")
MARK = "average_of"  # key in the checkpoints written here
UPDATE = re.compile(r"checkpoint_\d+_(\d+)\.pt$")


def last_epochs(save_dir: str, count: int) -> List[str]:
    """Paths of the `count` newest checkpointEPOCH.pt files, oldest first."""
    epochs = sorted(int(m.group(1)) for m in map(EPOCH.match, os.listdir(save_dir)) if m)
    if len(epochs) < count:
        raise KDPluginError(
            f"{save_dir} has {len(epochs)} epoch checkpoints, but --last asks for {count}. "
            f"Remedy: train with --keep-last-epochs {count} or more, or average fewer"
        )
    return [os.path.join(save_dir, f"checkpoint{epoch}.pt") for epoch in epochs[-count:]]


def last_updates(save_dir: str, count: int, every: int) -> List[str]:
    """Paths of the `count` newest checkpoints after a multiple of `every` updates, oldest first.

    fairseq gives the name checkpoint_EPOCH_UPDATE.pt only to checkpoints that are not at the end of an epoch.
    """
    found: Dict[int, str] = {}
    for name in os.listdir(save_dir):
        path = os.path.join(save_dir, name)
        by_name = UPDATE.match(name)
        if by_name:
            found[int(by_name.group(1))] = path
        elif EPOCH.match(name) or name == "checkpoint_last.pt":
            found.setdefault(read_checkpoint(path)["optimizer_history"][-1]["num_updates"], path)
    updates = sorted(update for update in found if update > 0 and update % every == 0)
    if len(updates) < count:
        raise KDPluginError(
            f"{save_dir} has {len(updates)} checkpoints after a multiple of {every} updates, but --last asks for "
            f"{count}. Remedy: train with --save-interval-updates {every}, and with --keep-interval-updates and "
            f"--keep-last-epochs {count} or more, or average fewer"
        )
    chosen = updates[-count:]
    lacking = [update for update in range(chosen[0], chosen[-1], every) if update not in found]
    if lacking:
        # where an epoch ends too, fairseq saves the epoch's checkpoint alone, which --keep-last-epochs may have removed
        print(
            f"{save_dir}: no checkpoint after {', '.join(map(str, lacking[:5]))} updates; averaging those after "
            f"{', '.join(map(str, chosen))}",
            file=sys.stderr,
        )
    return [found[update] for update in chosen]


def average(paths: Sequence[str]) -> Dict[str, Any]:
    """The last file's contents with the mean of all files' weights, summed in float64 and kept in float32."""
    sums: Dict[str, Any] = {}
    for path in paths:
        state = read_checkpoint(path)
        weights = state["model"]
        if sums and sums.keys() != weights.keys():
            raise KDPluginError(f"{path} has other parameters than {paths[0]}. Remedy: average checkpoints of one run")
        for name, value in weights.items():
            value = value.double() if value.is_floating_point() else value
            sums[name] = sums[name] + value if name in sums and value.is_floating_point() else value
    means: Dict[str, Any] = {}
    tied: Dict[Any, Any] = {}
    for name, value in sums.items():
        mean = (value / len(paths)).float() if value.is_floating_point() else value
        # Tied weights share memory and are stored once; they must still be after averaging.
        twin = tied.setdefault((weights[name].data_ptr(), weights[name].shape), mean)
        means[name] = twin if torch.equal(twin, mean) else mean
    state["model"] = means
    state["last_optimizer_state"] = None
    if state.get("cfg") is not None:
        # Plain containers, as fairseq saves them: safe reading refuses pickled configuration objects.
        state["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    return state


def job_of(save_dir: str, output: str) -> str:
    """Identifies the averages of one run, in one place, among all other files. Both may be moved together."""
    return digest_of(os.path.relpath(os.path.realpath(save_dir), os.path.dirname(os.path.realpath(output))))


def is_average(job: str, path: pathlib.Path) -> bool:
    """Whether a file was written by an earlier run of this same job."""
    try:
        return not os.path.islink(path) and read_checkpoint(str(path)).get(MARK) == job
    except (KDPluginError, OSError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("save_dir", help="--save-dir of the run")
    parser.add_argument("--last", type=int, required=True, metavar="N", help="how many checkpoints to average")
    parser.add_argument(
        "--every", type=int, metavar="UPDATES", help="average by updates: the value of --save-interval-updates"
    )
    parser.add_argument("--output", required=True, help="checkpoint to write")
    args = parser.parse_args()
    if args.last < 1 or (args.every is not None and args.every < 1):
        parser.error("--last and --every must be at least 1")
    job = job_of(args.save_dir, args.output)
    made = functools.partial(is_average, job)
    try:
        if args.every is None:
            paths = last_epochs(args.save_dir, args.last)
        else:
            paths = last_updates(args.save_dir, args.last, args.every)
        check_outputs([("SAVE_DIR", paths)], files=[("--output", args.output)], made=made)
        state = {**average(paths), MARK: job}
    except (KDPluginError, OSError) as error:
        raise SystemExit(f"average_checkpoints.py: {error}") from error
    output = pathlib.Path(args.output)
    partial = temporary_beside(output)
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            os.fsync(file.fileno())
        place(partial, output, "--output", made)
    except (KDPluginError, OSError) as error:
        raise SystemExit(f"average_checkpoints.py: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    first, last = os.path.basename(paths[0]), os.path.basename(paths[-1])
    print(f"{args.output}: mean of {len(paths)} ({first} to {last}), {count_parameters(state['model']):,} parameters")


if __name__ == "__main__":
    main()
