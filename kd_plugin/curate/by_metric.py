"""Scores from a learned metric that reads a source and its translation, without references: CometKiwi, MetricX.

Higher is better, as for every scorer: MetricX predicts the severity of errors, 0 … 25, and its score here is minus that
prediction.
"""

import contextlib
import math
import re
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence

import torch

from kd_plugin.checkpoints.huggingface import READ
from kd_plugin.checkpoints.transformers_library import CONFIG, LOCAL, silent
from kd_plugin.curate.scorers import Progress, Scorer, Texts
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.comet import open_comet
from kd_plugin.files.atomic import digest_of, sha256_of
from kd_plugin.files.json_text import parse_json

COMET_KIWI = "Unbabel/wmt22-cometkiwi-da"
METRICX = "google/metricx-24-hybrid-large-v2p6"
NAMES = {"comet-kiwi": COMET_KIWI, "metricx": METRICX}
ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
COMET_FILE = Path("checkpoints", "model.ckpt")  # in a downloaded folder
AT_A_TIME = 2048  # translations, which COMET batches by length

MT5_TOKENIZER = "google/mt5-large"  # the same for every size of mT5
TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
ERROR_SYMBOL = 250089  # <extra_id_10>: the logit of this symbol is the prediction
WORST = 25.0
REMEDY = (
    "Remedy: use comet-kiwi, metricx, a model on the hub (OWNER/NAME), a COMET checkpoint (.ckpt), or a folder with a "
    "MetricX model"
)


def open_metric(value: str, batch_size: int, device: torch.device) -> Scorer:
    """The metric that --metric names.

    Args:
        value: a key of NAMES, the path of a model, or its name on the Hugging Face hub
        batch_size: in translations

    Raises:
        KDPluginError: there is no such model, its library is not installed, or it needs references
    """
    model = NAMES.get(value, value)
    path = Path(model)
    if value not in NAMES and path.exists():
        if path.is_dir() and (path / CONFIG).is_file():
            return MetricXScorer(value, path, batch_size, device)
        if path.is_dir() and not (path / COMET_FILE).is_file():
            raise KDPluginError(
                f"--metric {value}: this folder contains neither a MetricX model ({CONFIG}) nor a COMET model "
                f"({COMET_FILE}). {REMEDY}"
            )
        return CometScorer(value, str(path / COMET_FILE if path.is_dir() else path), batch_size, device)
    if not ON_THE_HUB.fullmatch(model):
        raise KDPluginError(f"--metric {value}: no such metric or file. {REMEDY}")
    if "metricx" in model.lower():
        _version_of(value, model)  # checks the name before gigabytes are downloaded
        return MetricXScorer(value, _downloaded(value, model), batch_size, device)
    return CometScorer(value, model, batch_size, device)


class CometScorer(Scorer):
    """CometKiwi (Rei et al. 2022, https://aclanthology.org/2022.wmt-1.60) or another COMET model without references.

    Args:
        value: the user's value of --metric
        model: its path or its name on the hub
    """

    def __init__(self, value: str, model: str, batch_size: int, device: torch.device):
        example = f"{COMET_KIWI} (first accept its licence on its huggingface.co page, and log in)"
        opened = open_comet(f"--metric {value}", model, example)
        self._model, self._value = opened.model, value
        if self._model.requires_references():
            raise KDPluginError(
                f"--metric {value}: this COMET model compares translations with references, and there are none. "
                "Remedy: use comet-kiwi, or another model that estimates quality without them"
            )
        self._batch_size, self._device = batch_size, device
        self.identity = {
            "metric": "COMET",
            "model": opened.path.name if opened.path == Path(model) else model,
            "model_sha256": sha256_of(opened.path),
            "version": opened.version,
            "batch_size": batch_size,
        }

    def let_go(self) -> None:
        """As Scorer's."""
        self._model = None

    def __call__(self, pairs: Sequence[Texts], progress: Progress) -> List[Optional[float]]:
        """As Scorer's. The model truncates input beyond its limit: 512 tokens for CometKiwi."""
        # which GPU: each worker has its own
        on_gpu = {"devices": [self._device.index or 0]} if self._device.type == "cuda" else {}
        scores: List[Optional[float]] = []
        for start in range(0, len(pairs), AT_A_TIME):
            rows = [{"src": source, "mt": text} for source, text in pairs[start : start + AT_A_TIME]]
            found = self._model.predict(rows, self._batch_size, gpus=len(on_gpu), progress_bar=False, **on_gpu).scores
            scores += _checked([float(score) for score in found], len(rows), self._value)
            progress(len(rows))
        return scores


class Version(NamedTuple):
    """The input format of a MetricX generation. limit: in tokens, with end of sentence"""

    template: str
    limit: int


METRICX_23 = Version("candidate: {text} source: {source}", 1024)
METRICX_24 = Version("source: {source} candidate: {text}", 1536)


class MetricXScorer(Scorer):
    """MetricX (Juraska et al. 2024, https://aclanthology.org/2024.wmt-1.35): an mT5 whose logit of one symbol is the
    predicted error.

    It computes in float32. MetricX-24 models, trained with and without references, are used without; of MetricX-23
    (recognised by metricx-23 in the name), only the QE models work without references.

    Args:
        value: the user's value of --metric
        folder: with config.json, weights, and a tokenizer, which is otherwise downloaded
    """

    def __init__(self, value: str, folder: Path, batch_size: int, device: torch.device):
        self._value, self._batch_size, self._device = value, batch_size, device
        self._version = _version_of(value, f"{value} {folder.resolve()}")
        _check_is_metricx(value, folder)
        files = sorted(file for file in folder.iterdir() if file.suffix in (*READ, ".bin") and file.is_file())
        with _transformers(value) as transformers:
            own = any((folder / file).is_file() for file in TOKENIZER_FILES)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder) if own else MT5_TOKENIZER)
            # the library's own class has all the weights; its loader reads a file of them without running code from it
            self._model, info = transformers.MT5ForConditionalGeneration.from_pretrained(
                str(folder), output_loading_info=True, torch_dtype=torch.float32, **LOCAL
            )
        if info["missing_keys"] or info["mismatched_keys"] or self._model.config.vocab_size <= ERROR_SYMBOL:
            raise KDPluginError(f"--metric {value}: it lacks weights of a MetricX model. {REMEDY}")
        self._model.to(device).eval().requires_grad_(False)
        self.identity = {
            "metric": "MetricX",
            "model": value if value not in NAMES else NAMES[value],
            "model_sha256": digest_of({file.name: sha256_of(file) for file in files}),
            "template": self._version.template,
            "version": transformers.__version__,
            "batch_size": batch_size,
        }

    def let_go(self) -> None:
        """As Scorer's."""
        self._model = None

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Texts], progress: Progress) -> List[Optional[float]]:
        """As Scorer's: minus the predicted error, -25 … 0."""
        template, limit = self._version
        tokens = [self._tokenizer(template.format(source=source, text=text))["input_ids"] for source, text in pairs]
        possible = sorted((at for at, ids in enumerate(tokens) if len(ids) <= limit), key=lambda at: len(tokens[at]))
        progress(len(pairs) - len(possible))
        scores: List[Optional[float]] = [None] * len(pairs)
        for start in range(0, len(possible), self._batch_size):
            batch = possible[start : start + self._batch_size]
            # without the end of sentence, as in its training
            errors = self._errors([tokens[at][:-1] for at in batch])
            for at, score in zip(batch, _checked([0.0 - error for error in errors], len(batch), self._value)):
                scores[at] = score
            progress(len(batch))
        return scores

    def _errors(self, rows: List[List[int]]) -> List[float]:
        longest = max(map(len, rows))
        ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
        for at, row in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = torch.tensor(row), 1
        start = torch.zeros(len(rows), 1, dtype=torch.long)  # one step, from mT5's padding
        ids, mask, start = (tensor.to(self._device) for tensor in (ids, mask, start))
        logits = self._model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits
        found: List[float] = logits[:, 0, ERROR_SYMBOL].float().clamp(0.0, WORST).tolist()
        return found


def _checked(scores: List[float], expected: int, value: str) -> List[float]:
    if len(scores) != expected or not all(map(math.isfinite, scores)):
        raise KDPluginError(
            f"--metric {value}: gave {len(scores):,} scores for {expected:,} translations, or some are NaN or "
            "infinite. Remedy: use an intact copy of the model, or another one"
        )
    return scores


def _version_of(value: str, name: str) -> Version:
    """The generation in a name or path; 24 if there is none."""
    if "metricx-23" not in name.lower():
        return METRICX_24
    if "metricx-23-qe" not in name.lower():
        raise KDPluginError(
            f"--metric {value}: this MetricX-23 model compares translations with references, and there are none. "
            "Remedy: use a MetricX-24 or MetricX-23-QE model"
        )
    return METRICX_23


def _check_is_metricx(value: str, folder: Path) -> None:
    try:
        config = parse_json((folder / CONFIG).read_bytes())
        kind, classes = config.get("model_type"), list(config.get("architectures") or [])
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise KDPluginError(f"--metric {value}: its {CONFIG} cannot be read ({error}). {REMEDY}") from error
    if kind != "mt5" or classes == ["MT5ForConditionalGeneration"]:
        what = f"is a model of the type {kind}" if kind != "mt5" else "is an mT5 that generates text"
        raise KDPluginError(f"--metric {value}: {what}, not MetricX. {REMEDY}")


def _downloaded(value: str, name: str) -> Path:
    """The local copy of a model on the hub."""
    with _transformers(value):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name))


@contextlib.contextmanager
def _transformers(value: str) -> Iterator[Any]:
    """The library, to open a model with.

    Raises:
        KDPluginError: it is not installed, or cannot open the model
    """
    try:
        import transformers
    except ImportError as error:
        raise KDPluginError(f"--metric {value}: {error}. Remedy: pip install 'kd-plugin[comet]'") from error
    try:
        with silent():
            yield transformers
    except Exception as error:  # the library, its parsers and a download raise all kinds
        reason = " ".join(str(error).split())[:300]
        raise KDPluginError(
            f"--metric {value}: transformers cannot open it ({type(error).__name__}: {reason}). {REMEDY}"
        ) from error
