"""Averages a training run's last checkpoints, of epochs or of updates, into one without optimizer state."""

import argparse
import os
import re
import sys

import torch
from omegaconf import OmegaConf

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))  # works uninstalled too

from kd_plugin.errors import KDPluginError  # noqa: E402
from kd_plugin.teachers.loading import count_parameters, read_checkpoint  # noqa: E402

# which checkpoints there are, and the flag of fairseq-train that keeps them
EPOCHS = re.compile(r"checkpoint(\d+)\.pt$"), "--keep-last-epochs"
UPDATES = re.compile(r"checkpoint_\d+_(\d+)\.pt$"), "--keep-interval-updates"


def newest(save_dir, count, kind):
    """Paths of the `count` newest checkpointEPOCH.pt or checkpoint_EPOCH_UPDATE.pt, oldest first."""
    pattern, flag = kind
    found = sorted((int(m.group(1)), m.group()) for m in map(pattern.match, os.listdir(save_dir)) if m)
    if len(found) < count:
        what = "epoch" if kind is EPOCHS else "update"
        raise KDPluginError(
            f"{save_dir} has {len(found)} {what} checkpoints, {count} are asked for. Remedy: train with {flag} at "
            "least that, or average fewer"
        )
    return [os.path.join(save_dir, name) for _, name in found[-count:]]


def average(paths):
    """The last file's contents with the mean of all files' weights, summed in float64 and kept in float32."""
    sums = {}
    for path in paths:
        state = read_checkpoint(path)
        weights = state["model"]
        if sums and sums.keys() != weights.keys():
            raise KDPluginError(f"{path}: its parameters are not those of {paths[0]}. Remedy: average one run only")
        for name, value in weights.items():
            value = value.double() if value.is_floating_point() else value
            sums[name] = sums[name] + value if name in sums and value.is_floating_point() else value
    means, tied = {}, {}
    for name, value in sums.items():
        mean = (value / len(paths)).float() if value.is_floating_point() else value
        # Tied weights share memory, so that they are stored once; they must go on doing so.
        twin = tied.setdefault((weights[name].data_ptr(), weights[name].shape), mean)
        means[name] = twin if torch.equal(twin, mean) else mean
    state["model"] = means
    state["last_optimizer_state"] = None
    if state.get("cfg") is not None:
        # Plain containers, as fairseq saves them: safe reading refuses pickled configuration objects.
        state["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("save_dir", help="--save-dir of the run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=int, metavar="N", help="how many epochs")
    which.add_argument("--num-update-checkpoints", type=int, metavar="N", help="how many of --save-interval-updates")
    parser.add_argument("--output", required=True, help="checkpoint to write")
    args = parser.parse_args()
    count, kind = (args.last, EPOCHS) if args.last is not None else (args.num_update_checkpoints, UPDATES)
    if count < 1:
        parser.error("at least 1 checkpoint is averaged")
    try:
        paths = newest(args.save_dir, count, kind)
        state = average(paths)
    except (KDPluginError, OSError) as error:
        raise SystemExit(f"average_checkpoints.py: {error}") from error
    partial = f"{args.output}.{os.getpid()}.part"
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            os.fsync(file.fileno())
        os.replace(partial, args.output)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    first, last = os.path.basename(paths[0]), os.path.basename(paths[-1])
    print(f"{args.output}: mean of {len(paths)} ({first} to {last}), {count_parameters(state):,} parameters")


if __name__ == "__main__":
    main()
