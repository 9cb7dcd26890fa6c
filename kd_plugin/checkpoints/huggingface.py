"""A Hugging Face transformers folder with a translation model, read without running code from it.

MarianMT (OPUS-MT), M2M100 and NLLB, mBART and mBART-50, T5 and MADLAD.
"""

import os
from pathlib import Path
from typing import Any, Optional

from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.read import count_parameters, model_sha256
from kd_plugin.checkpoints.tokenizer import Tokenizer
from kd_plugin.checkpoints.transformers_library import LOCAL, model_type, opening
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of

TRANSLATES = "AutoModelForSeq2SeqLM"
READ = (".json", ".safetensors", ".model", ".spm", ".txt")  # the files that determine a model's output


class Folder(Tokenizer):
    """An opened folder.

    Args:
        path: a folder with config.json, safetensors and the tokenizer files
        whose: as for Tokenizer
        expected_sha256: the required `folder_sha256`; None: any

    Raises:
        KDPluginError: transformers is not installed; the model is of another kind; weights are pickled, missing,
            unknown or not finite; there is no tokenizer; or the sha256 differs
    """

    def __init__(self, path: str, expected_sha256: Optional[str] = None, whose: str = "teacher"):
        model_type(path)
        check_weights_files(path)
        self.sha256 = folder_sha256(path, expected_sha256)
        self.model = load_model(path)
        super().__init__(path, whose)
        self.config = self.model.config
        self.model.float().eval().requires_grad_(False)
        check_finite(self.model.state_dict(), path)
        self.parameters = count_parameters(dict(self.model.named_parameters()))

    @property
    def rows(self) -> int:
        """As Tokenizer's, but from the weights."""
        return int(self.model.get_input_embeddings().weight.size(0))


def folder_sha256(path: str, expected: Optional[str] = None) -> str:
    """One hash of the files that determine a model's output, whatever other files are in the folder.

    Raises:
        KDPluginError: it is not the expected one; None: any
    """
    files = sorted(file for file in Path(path).iterdir() if file.suffix in READ and file.is_file())
    found = digest_of({file.name: model_sha256(file) for file in files})
    if expected is not None and found != expected.lower():
        raise KDPluginError(
            f"{path}: sha256 of its files is {found}, expected {expected}: the folder is damaged or another one. "
            "Remedy: download it again, or correct the expected hash (--teacher-sha256)"
        )
    return found


def check_weights_files(path: str, auto: str = TRANSLATES) -> None:
    """Refuses a folder without safetensors. auto: the class of transformers that opens it"""
    names = os.listdir(path)
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        what = f"its weights are pickled ({pickled[0]}), which may contain programs" if pickled else "it has no weights"
        raise KDPluginError(
            f"{path}: {what}. Remedy: create model.safetensors with transformers: {auto}."
            "from_pretrained(FOLDER).save_pretrained(FOLDER); run it only on files that you trust"
        )


def load_model(path: str, auto: str = TRANSLATES) -> Any:
    """The model, on the CPU. auto: the class of transformers that opens it"""
    with opening(path) as transformers:
        model, info = getattr(transformers, auto).from_pretrained(
            path, use_safetensors=True, output_loading_info=True, **LOCAL
        )
    for kind, what in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has"),
        ("mismatched_keys", "has in other sizes"),
    ):
        names = sorted(map(str, info.get(kind) or []))
        if names:
            raise KDPluginError(
                f"{path}: its safetensors file {what} {len(names)} tensors that {type(model).__name__} "
                f"{'needs' if kind == 'missing_keys' else 'does not have so'}; the first is {names[0]}. Remedy: copy "
                "the folder again, or use the version of transformers that wrote it"
            )
    return model
