"""A fork of fairseq's, as others write them: a folder for --user-dir with an architecture, a model class and a task."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict

import torch
from fairseq import models, tasks, utils

from tests.support import MODEL, load
from tests.unit.test_architectures import make

MARK = "of_a_forks_test"  # in all names that it registers, by which they are forgotten again
PACKAGE = f"package_{MARK}"
SIZES = MODEL[2:]
MARKS = ["<mark0>", "<mark1>"]
# by what is unknown to fairseq
KINDS: Dict[str, Any] = {
    "architecture": ["--arch", f"transformer_18_18_{MARK}", *SIZES[4:]],  # the layers are the function's
    "architecture, stored as flags": ["--arch", f"transformer_18_18_{MARK}", *SIZES[4:]],
    "model class": ["--arch", f"sharp_{MARK}", *SIZES, "--sharpness", 3],
    "task": ["--arch", "transformer", *SIZES, "--task", f"marked_{MARK}", "--marks", len(MARKS)],
    "task that needs its model's": ["--arch", f"task_reader_{MARK}", *SIZES, "--task", f"marked_{MARK}", "--marks", 2],
}

FILES = {
    "__init__.py": "from . import architectures, marked_task  # noqa: F401\n",
    "architectures.py": f'''
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerDecoder, TransformerModel, base_architecture
import torch


@register_model_architecture("transformer", "transformer_18_18_{MARK}")
def transformer_deep(args):
    args.encoder_layers = getattr(args, "encoder_layers", 3)
    args.decoder_layers = getattr(args, "decoder_layers", 2)
    args.encoder_normalize_before = getattr(args, "encoder_normalize_before", True)
    args.decoder_normalize_before = getattr(args, "decoder_normalize_before", True)
    base_architecture(args)


class SharpDecoder(TransformerDecoder):
    """A weight and an option that no stock model has."""

    def __init__(self, args, *others, **more):
        super().__init__(args, *others, **more)
        self.sharpness = torch.nn.Parameter(torch.tensor(float(args.sharpness)))

    def output_layer(self, features):
        return super().output_layer(features) * self.sharpness


@register_model("sharp_{MARK}")
class SharpTransformer(TransformerModel):
    @classmethod
    def add_args(cls, parser):
        super().add_args(parser)
        parser.add_argument("--sharpness", type=float)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return SharpDecoder(args, tgt_dict, embed_tokens)


register_model_architecture("sharp_{MARK}", "sharp_{MARK}")(base_architecture)


@register_model("task_reader_{MARK}")
class TaskReader(TransformerModel):
    @classmethod
    def build_model(cls, args, task):
        assert task.marks == 2
        return super().build_model(args, task)


register_model_architecture("task_reader_{MARK}", "task_reader_{MARK}")(base_architecture)
''',
    "marked_task.py": f"""
from dataclasses import dataclass, field

from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask


@dataclass
class MarkedConfig(TranslationConfig):
    marks: int = field(default=0, metadata={{"help": "symbols that it adds to both dictionaries"}})


@register_task("marked_{MARK}", dataclass=MarkedConfig)
class MarkedTask(TranslationTask):
    @classmethod
    def load_dictionary(cls, filename):
        dictionary = super().load_dictionary(filename)
        for number in range({len(MARKS)}):
            dictionary.add_symbol(f"<mark{{number}}>")
        return dictionary

    @property
    def marks(self):
        return self.cfg.marks
""",
}


def write_fork(folder: Path, files: Dict[str, str] = FILES) -> Path:
    """The folder, new."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def forget() -> None:
    """As if no fork had been imported in this process."""
    for registry in (
        models.ARCH_MODEL_REGISTRY, models.ARCH_CONFIG_REGISTRY, models.ARCH_MODEL_NAME_REGISTRY,
        models.ARCH_MODEL_INV_REGISTRY, models.MODEL_REGISTRY, models.MODEL_DATACLASS_REGISTRY, tasks.TASK_REGISTRY,
        tasks.TASK_DATACLASS_REGISTRY, sys.modules,
    ):  # fmt: skip
        for name in [name for name in registry if MARK in name]:
            del registry[name]
    for names in models.ARCH_MODEL_INV_REGISTRY.values():
        names[:] = [name for name in names if MARK not in name]
    tasks.TASK_CLASS_NAMES.discard("MarkedTask")
    memo = getattr(utils.import_user_module, "memo", set())
    memo -= {path for path in memo if MARK in path}
    sys.path[:] = [place for place in sys.path if not any(Path(place).glob(f"*{MARK}"))]  # which importing has added


def make_teacher(kind: str, path: Path, data: Path, fork: Path, seed: int = 1, languages: Any = ("en", "de")) -> Any:
    """An untrained checkpoint; nobody knows the fork afterwards. Returns the model in float64."""
    utils.import_user_module(argparse.Namespace(user_dir=str(fork)))
    try:
        model = make(path, data, *KINDS[kind], "-s", languages[0], "-t", languages[1], seed=seed).model
        if kind == "architecture, stored as flags":
            state = load(path)
            flags = vars(state["cfg"]["model"])
            # training code that is nowhere to be found, and an option that nobody knows
            flags = {**flags, "task": "translation", "criterion": "of_their_own", "optimizer": "theirs", "hobby": "tea"}
            torch.save({**state, "args": argparse.Namespace(**flags), "cfg": None}, str(path))
    finally:
        forget()
    return model.double()
