"""The work of `kd-plugin sweep`: checks, trials, other seeds, results."""

import shlex
import sys
import threading
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, make_folder
from kd_plugin.files.locks import Claim
from kd_plugin.files.protection import Named, check_outputs
from kd_plugin.sweep.config import Sweep, read_sweep

try:
    import optuna  # noqa: F401
except ImportError as error:
    raise KDPluginError(f"sweep: {error}. Remedy: pip install 'kd-plugin[sweep]'") from error

from kd_plugin.sweep.results import MARKDOWN_NAME, write_results
from kd_plugin.sweep.retrain import retrain
from kd_plugin.sweep.space import Space, read_space
from kd_plugin.sweep.study import Place, Study, training_words

IDENTITY = "sweep.sha256"


class Options(NamedTuple):
    """The command's options. devices: one CUDA device per worker, separated by commas; None: as this process"""

    config: str
    output: str
    workers: int
    devices: Optional[str]
    dry_run: bool
    inputs: Sequence[Named]


def sweep(options: Options) -> str:
    """Runs or continues a sweep.

    Returns:
        the results as Markdown, or for a dry run the command of the first trial

    Raises:
        KDPluginError: a value in the file is wrong, the folder belongs to another sweep, or the first training fails
    """
    config = read_sweep(options.config)
    devices = [device.strip() for device in options.devices.split(",")] if options.devices else []
    workers = options.workers or len(devices) or 1
    if not all(devices):
        raise KDPluginError(f"--devices {options.devices}: has an empty name. Remedy: such as 0,1,2,3")
    if devices and len(devices) != workers:
        raise KDPluginError(f"--devices names {len(devices)}, but --workers {workers}. Remedy: one device per worker")
    space = read_space(config)
    output = Path(options.output)
    check_outputs(options.inputs, folders=[("--output", output)])
    for flag in sorted(set(space.distributions) - set(space.given)):
        print(
            f"{config.path}: the value of {flag} in `train` is not among those to try, so no trial is your command "
            "itself; with the other seeds it is trained as it stands",
            file=sys.stderr,
        )
    if options.dry_run:
        return _planned(config, space, output)
    make_folder(output, "--output")
    identity = digest_of(config._replace(path="", trials=0, retrain=(0, []))._asdict())

    def ours(begun_here: bool) -> None:
        known = output / IDENTITY
        if known.exists():
            if known.read_text(encoding="utf-8").strip() != identity:
                raise KDPluginError(
                    f"--output {output}: has the sweep of another file. Remedy: another folder; only `trials` and "
                    "`retrain` may change"
                )
        elif not begun_here and any(path.name != ".lock" for path in output.iterdir()):
            raise KDPluginError(f"--output {output}: is not empty, and no sweep began there. Remedy: another folder")

    with Claim(output / ".lock", f"--output {output}", identity, ours) as claim:
        (output / IDENTITY).write_text(identity + "\n", encoding="utf-8")
        place = Place(output, workers, devices, threading.Event())
        study = Study(config, space, place)
        study.run()
        trials = study.trials()
        write_results(output, config, space, trials, [])  # for whoever looks while the seeds are trained
        text = write_results(output, config, space, trials, retrain(config, space, place, trials))
        claim.finish()
    return f"{text}\n{output / MARKDOWN_NAME}"


def _planned(config: Sweep, space: Space, output: Path) -> str:
    words = shlex.join(["fairseq-train", *training_words(config, space, {}, output / "trials/0000", config.seed)])
    ranges = [f"  {flag}: {distribution}" for flag, distribution in space.distributions.items()]
    return "\n".join([f"{config.trials} trials of", words, "with", *ranges])
