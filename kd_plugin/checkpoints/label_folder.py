"""A Hugging Face folder with a model for sequence or token classification, read without running code from it."""

import re
from pathlib import Path
from typing import Any, List, Optional

from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.huggingface import check_weights_files, folder_sha256, load_model
from kd_plugin.checkpoints.read import count_parameters
from kd_plugin.checkpoints.tokenizer import NO_LIMIT
from kd_plugin.checkpoints.transformers_library import CONFIG, LOCAL, opening
from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import parse_json

UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls labels that nobody has named
FOR_SENTENCES, FOR_TOKENS = "ForSequenceClassification", "ForTokenClassification"


class LabelFolder:
    """An opened folder.

    Attributes:
        path, sha256: of the folder, and of the files that determine its output
        model: frozen, in eval mode, on the CPU, in float32
        parameters: their number, counting tied ones once
        tokenizer: a fast one
        names: of its labels, in the order of its outputs; None: nobody has named them
        outputs: their number
        limit: the most tokens that it reads, with the symbols around a sentence

    Args:
        labels_tokens: whether it should label tokens rather than sentences
        expected_sha256: the required `folder_sha256`; None: any

    Raises:
        KDPluginError: transformers is not installed; the model labels something else; weights are pickled, missing,
            unknown or not finite; there is no fast tokenizer; or the sha256 differs
    """

    def __init__(self, path: str, labels_tokens: bool, expected_sha256: Optional[str] = None):
        self.path = path
        _check_kind(path, labels_tokens)
        auto = "AutoModelForTokenClassification" if labels_tokens else "AutoModelForSequenceClassification"
        check_weights_files(path, auto)
        self.sha256 = folder_sha256(path, expected_sha256)
        self.model = load_model(path, auto)
        self.model.float().eval().requires_grad_(False)
        check_finite(self.model.state_dict(), path)
        self.parameters = count_parameters(dict(self.model.named_parameters()))
        # RoBERTa's tokenizer asks for this where words are given
        words = {"add_prefix_space": True} if labels_tokens else {}
        with opening(path) as transformers:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, use_fast=True, **words, **LOCAL)
        if not self.tokenizer.is_fast:
            raise KDPluginError(
                f"{path}: {type(self.tokenizer).__name__} cannot say which word a token belongs to. Remedy: a folder "
                "with tokenizer.json, as the fast tokenizer's save_pretrained writes it"
            )
        config = self.model.config
        if getattr(config, "problem_type", None) == "multi_label_classification":
            raise KDPluginError(
                f"{path}: gives a sentence any number of labels, but a student here has exactly one per sentence. "
                "Remedy: a teacher with one label per sentence"
            )
        self.outputs = int(config.num_labels)
        names = [str(config.id2label[index]) for index in range(self.outputs)]
        self.names: Optional[List[str]] = None if any(map(UNNAMED.fullmatch, names)) else names
        self.limit = min(int(getattr(self.tokenizer, "model_max_length", NO_LIMIT)), _positions(self.model), NO_LIMIT)


def architectures_of(path: str) -> List[str]:
    """The classes of transformers that its configuration names."""
    try:
        return [str(name) for name in parse_json((Path(path) / CONFIG).read_bytes())["architectures"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _check_kind(path: str, labels_tokens: bool) -> None:
    classes = architectures_of(path)
    ending, other = (FOR_TOKENS, FOR_SENTENCES) if labels_tokens else (FOR_SENTENCES, FOR_TOKENS)
    if any(name.endswith(ending) for name in classes):
        return
    remedy = f"a …{ending} folder: fine-tune this model first"
    if any(name.endswith(other) for name in classes):
        training, evaluation = (
            ("sentence_prediction", "classification") if labels_tokens else ("sequence_tagging", "tagging")
        )
        remedy = (
            f"--task distillation_{training} in training, --task {evaluation} in kd-plugin evaluate-classifier, or a "
            f"…{ending} folder"
        )
    raise KDPluginError(
        f"{path}: holds {' and '.join(classes) or 'a model of no class'}, which does not label "
        f"{'tokens' if labels_tokens else 'sentences'}. Remedy: {remedy}"
    )


def _positions(model: Any) -> int:
    """The number of positions that it can embed."""
    positions = int(getattr(model.config, "max_position_embeddings", 0) or NO_LIMIT)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - int(module.padding_idx) - 1  # RoBERTa counts from there
    return positions
