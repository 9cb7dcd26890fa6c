"""A tiny translation task, and the real fairseq command lines run on it."""

import contextlib
import copy
import functools
import io
import itertools
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

import torch

from kd_plugin.compat import BETTER_TRANSFORMER_COPY
from tests import warm_start
from tests.command_lines import BATCHES, LOGS, MODEL, OPTIMIZER, STOCK, training  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent
USER_DIR = str(ROOT / "kd_plugin")
TIMEOUT = 600

NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}
COLOURS = {"red": "rot", "blue": "blau", "green": "grün", "black": "schwarz", "white": "weiß"}
THINGS = {"car": "auto", "house": "haus", "dog": "hund", "cat": "katze", "tree": "baum", "book": "buch"}


def write_corpus(folder: pathlib.Path) -> None:
    """train (300), valid (41) and test (41) pairs of an invented language pair with another word order."""
    phrases = list(itertools.product(NUMBERS, COLOURS, THINGS))
    draw = random.Random(7)
    for split, size in (("train", 300), ("valid", 41), ("test", 41)):
        lines = []
        for _ in range(size):
            chosen = draw.sample(phrases, draw.randint(1, 3))
            source = " and ".join(" ".join(words) for words in chosen)
            target = " und ".join(f"{THINGS[t]} {NUMBERS[n]} {COLOURS[c]}" for n, c, t in chosen)
            lines.append((source, target))
        for index, lang in enumerate(("en", "de")):
            text = "".join(pair[index] + "\n" for pair in lines)
            (folder / f"{split}.{lang}").write_text(text, encoding="utf-8")


def preprocess(folder: pathlib.Path, name: str, *extra: str) -> pathlib.Path:
    """fairseq-preprocess of the corpus in `folder` into `folder/name`."""
    run(
        "fairseq-preprocess", "-s", "en", "-t", "de", "--trainpref", folder / "train", "--validpref", folder / "valid",
        "--testpref", folder / "test", "--destdir", folder / name, "--joined-dictionary", *extra,
    )  # fmt: skip
    return folder / name


def start(command: str, *arguments: Any, env: Optional[Dict[str, str]] = None, cwd: Any = ".", input: str = "") -> Any:
    """One of fairseq's (or our) installed commands, or `python` and a script, as a user runs it; output and errors
    together."""
    line = [str(pathlib.Path(sys.executable).parent / command), *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    with tempfile.TemporaryFile() as typed:
        typed.write(input.encode("utf-8"))
        typed.seek(0)
        if not os.environ.get("KD_TEST_COLD"):
            return warm_start.Command(line, environment, os.path.abspath(cwd), typed)
        return subprocess.Popen(
            line, stdin=typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment,
            cwd=str(cwd),
        )  # fmt: skip


def run(command: str, *arguments: Any, check: bool = True, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """start, and its end; output and errors together in `.stdout`."""
    return _ended(start(command, *arguments, **kwargs), check)


def run_together(
    *commands: Sequence[Any], env: Optional[Dict[str, str]] = None
) -> List["subprocess.CompletedProcess[str]"]:
    """Several commands at the same time: the ranks of one training, or runs that do not depend on each other."""
    processes = [start(*command, env=env) for command in commands]
    results = [_ended(process, check=False) for process in processes]  # the first error may be another's doing
    for result in results:
        assert result.returncode == 0, f"{result.args[0]} exited {result.returncode}:\n{result.stdout[-6000:]}"
    return results


def _ended(process: Any, check: bool) -> "subprocess.CompletedProcess[str]":
    try:
        output = process.communicate(timeout=TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    if check and process.returncode != 0:
        raise AssertionError(f"{process.args[0]} exited {process.returncode}:\n{output[-6000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, output)


PLUGIN = ["--user-dir", USER_DIR, "--task", "distillation_translation"]
PLUGIN += ["--criterion", "kd_label_smoothed_cross_entropy"]


def train(data: pathlib.Path, save_dir: pathlib.Path, *extra: Any, **kwargs: Any):
    command = training(data, save_dir, *extra)
    return run(*command, **kwargs)


def load(path: pathlib.Path) -> Dict[str, Any]:
    """A checkpoint this test made itself, as it lies on disk."""
    if "weights_only" in (torch.load.__doc__ or ""):
        return torch.load(str(path), map_location="cpu", weights_only=False)
    return torch.load(str(path), map_location="cpu")


def assert_same_weights(one: pathlib.Path, other: pathlib.Path, tolerance: float = 0.0) -> None:
    """Every tensor of the two models; tolerance 0 means bit by bit."""
    a, b = load(one)["model"], load(other)["model"]
    assert a.keys() == b.keys()
    for name in a:
        # what fairseq 0.12.2 leaves uninitialised, and its unused copies of weights, which only loading fills
        if name.endswith("_float_tensor") or BETTER_TRANSFORMER_COPY.search(name):
            continue
        if tolerance:
            torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert torch.equal(a[name], b[name]), name


def logged(output: str, tag: str) -> List[Dict[str, float]]:
    """The values of each `--log-format json` line of one kind: train_inner, train or valid."""
    import json

    lines = re.findall(rf"\| {tag} \| (\{{.*\}})$", output, flags=re.MULTILINE)
    values = [json.loads(line) for line in lines]
    return [{key: float(value) for key, value in entry.items() if value is not None} for entry in values]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@functools.lru_cache(maxsize=None)
def _configuration(*arguments: str) -> Any:
    """What fairseq-train makes of these flags; hydra takes most of a second for it."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parser = options.get_training_parser()
    with contextlib.redirect_stderr(io.StringIO()):
        args = options.parse_args_and_arch(parser, ["data", "--task", "translation", *arguments])
    return convert_namespace_to_omegaconf(args)


def make_checkpoint(path: pathlib.Path, data: pathlib.Path, *arguments: Any, seed: int = 0) -> Any:
    """An untrained fairseq checkpoint of any architecture, with the configuration that fairseq-train would store.

    Returns the model. Much quicker than a training run, for tests of reading and of architectures.
    """
    from fairseq import tasks
    from omegaconf import OmegaConf

    cfg = copy.deepcopy(_configuration(*map(str, arguments)))
    for part in (cfg.task, cfg.model):
        if hasattr(part, "data"):
            part.data = str(data)
    torch.manual_seed(seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, str(path))
    return model.eval()


class Workspace:
    """Corpus, data-bin and a teacher trained by stock fairseq-train, in a folder whose name has a space.

    Tests side by side share it: nothing is written there.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.data = folder / "data-bin"
        self.teacher = folder / "teacher" / "checkpoint_last.pt"

    def make(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # what one that failed has left
        self.folder.mkdir()
        write_corpus(self.folder)
        preprocess(self.folder, self.data.name)
        train(
            self.data, self.teacher.parent, *STOCK, "--encoder-embed-dim", 32, "--decoder-embed-dim", 32,
            "--max-update", 150, "--disable-validation", "--no-epoch-checkpoints", "--lr", "0.01",
        )  # fmt: skip

    def distil(self, *extra: Any) -> List[Any]:
        """Flags of a distilled run."""
        return [*PLUGIN, "--teacher-path", self.teacher, *extra]


def asked(teacher, sample, rows, dtype):
    """What a teacher says about some rows of a batch."""
    from kd_plugin.teachers.base import Request

    return teacher.answer(sample, Request(rows, dtype)).distribution
