"""Translating whole lists of sentences with any model: a checkpoint, an ensemble, or a folder."""

import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from kd_plugin.checkpoints.exported import described_languages, read_description
from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.checkpoints.read import model_sha256
from kd_plugin.corpus.batches import by_length
from kd_plugin.corpus.subwords import Segmentation
from kd_plugin.decoding.base import Around, Decoder, Scored, Settings, Tokens
from kd_plugin.decoding.ctranslate2 import CTranslate2Decoder
from kd_plugin.decoding.fairseq import Checkpoints, FairseqDecoder, open_checkpoints
from kd_plugin.decoding.folders.opening import TextFolder, check_folder
from kd_plugin.decoding.length_limit import is_capped
from kd_plugin.errors import KDPluginError
from kd_plugin.runners.progress import progress_bar


class OpenedModel(NamedTuple):
    """A model ready to translate, and its properties.

    compute_type: the type of its weights in computation. bytes: size of a checkpoint's stored weights without optimizer
    state, or of a CTranslate2 model's files with the vocabularies. parameters: None: unknown. sha256: of each file with
    weights. languages: source and target; None: unknown. checkpoints, folder: to open it again on another device; both
    None: a CTranslate2 folder. subwords: its own segmentation; None: it has none.
    """

    decoder: Any  # a Decoder
    engine: str
    compute_type: str
    bytes: int
    parameters: Optional[int]
    sha256: List[str]
    languages: Optional[List[str]] = None
    checkpoints: Optional[Checkpoints] = None
    folder: Optional[TextFolder] = None
    subwords: Optional[Segmentation] = None


class Translated(NamedTuple):
    """hypotheses: the best of each sentence, in order. seconds: of the search alone, without the start.

    sentences, tokens: how many sentences were translated, and into how many symbols, with ends of sentence; empty and
    too long ones are not counted. capped: sentences whose translation was ended by the length limit, with the limit.
    approximate: how many sentences are approximate as in Decoder.
    """

    hypotheses: List[Tokens]
    seconds: float
    too_long: int  # sentences that the model cannot take; their translations are empty
    sentences: int
    tokens: int
    capped: Dict[int, int]
    approximate: int = 0


def engine_of(path: str, engine: str = "auto") -> str:
    """The engine for a model.

    Raises:
        KDPluginError: the path is neither a checkpoint nor a CTranslate2 folder, or not one for `engine`
    """
    if Path(path).is_dir():
        check_folder(path)
        found = "ctranslate2"
    else:
        for member in split_model_paths(path):
            if not Path(member).is_file():
                raise KDPluginError(f"{member}: no such checkpoint file or model folder. Remedy: check the path")
        found = "fairseq"
    if engine not in ("auto", found):
        remedy = "kd-plugin export --format ctranslate2 first" if engine == "ctranslate2" else "the checkpoint itself"
        raise KDPluginError(f"{path}: is a model for {found}, not for --engine {engine}. Remedy: {remedy}")
    return found


def open_model(
    path: str,
    settings: Settings,
    engine: str = "auto",
    device: str = "cpu",
    threads: int = 1,
    overrides: Optional[Dict[str, Any]] = None,
    source_lang: Optional[str] = None,
    target_lang: Optional[str] = None,
    compute_type: str = "default",
    checkpoints: Optional[Checkpoints] = None,
    folder: Optional[TextFolder] = None,
) -> OpenedModel:
    """A model ready to translate.

    Args:
        path: A.pt, an ensemble A.pt:B.pt, or a folder: from CTranslate2, or with `folder` from another toolkit
        threads: for CTranslate2; fairseq uses torch's
        overrides, source_lang, target_lang: as for `open_checkpoint`; for checkpoints only
        checkpoints, folder: what the path names, if it is open already

    Raises:
        KDPluginError: as `engine_of`, `open_checkpoint` and the decoders
    """
    if engine_of(path, engine) == "ctranslate2":
        model = None if folder is None else folder.model
        where, around = (Path(path), Around()) if folder is None else (folder.converted, folder.model.around)
        decoder = CTranslate2Decoder(where, settings, device, compute_type, threads, around=around)
        description = read_description(where)
        files = [where / "model.bin", *where.glob("*vocabulary.*"), where / "vmap.txt"]
        size = sum(file.stat().st_size for file in files if file.is_file())
        digests = [model_sha256(where / "model.bin")] if model is None else model.identity()["models"]
        languages = described_languages(description) if model is None else model.languages
        subwords = None if model is None else model.subwords
        said = decoder.compute_type, size, description.get("parameters"), digests, languages
        return OpenedModel(decoder, "ctranslate2", *said, folder=folder, subwords=subwords)
    checkpoints = checkpoints or open_checkpoints(path, overrides, source_lang, target_lang)
    opened = FairseqDecoder(checkpoints, settings, torch.device(device))
    digests, size = list(map(model_sha256, checkpoints.paths)), opened.weight_bytes
    return OpenedModel(
        opened, "fairseq", "float32", size, opened.parameters, digests, checkpoints.languages, checkpoints
    )


def in_batches(
    decoder: Decoder, sentences: Sequence[Tokens], max_tokens: int
) -> Iterator[Tuple[List[int], List[List[Scored]], int]]:
    """(places, their translations, the length limit) of each batch, without sentences that cannot be translated.

    Args:
        sentences: symbols without end of sentence; some may be empty, or longer than the model can take
        max_tokens: per batch, with ends of sentence and padding
    """
    lengths = np.array([len(tokens) for tokens in sentences], dtype=np.int64)
    possible = np.flatnonzero((lengths > 0) & (lengths <= decoder.max_source_tokens))
    for batch in by_length(lengths[possible] + 1, max_tokens):
        places = possible[batch].tolist()
        limit = decoder.length_limit(int(lengths[places].max()))
        yield places, decoder([sentences[place] for place in places]), limit


def translate(
    decoder: Decoder, sentences: Sequence[Tokens], max_tokens: int = 4000, name: Optional[str] = None
) -> Translated:
    """The best translation of each sentence; empty for one that is empty or longer than the model can take.

    Args:
        sentences, max_tokens: as in_batches
        name: the progress bar's; None: no progress bar
    """
    hypotheses: List[Tokens] = [[] for _ in sentences]
    capped: Dict[int, int] = {}
    approximate = 0
    too_long = sum(len(tokens) > decoder.max_source_tokens for tokens in sentences)
    possible = sum(map(bool, sentences)) - too_long
    start = time.perf_counter()
    with progress_bar(name or "", possible, disable=name is None) as bar:
        for places, answers, limit in in_batches(decoder, sentences, max_tokens):
            for place, answer in zip(places, answers):
                hypotheses[place] = list(answer[0][0])
                if is_capped(answer[:1], limit):
                    capped[place] = limit
            approximate += len(decoder.approximate)
            bar.update(len(places))
    seconds = time.perf_counter() - start
    return Translated(
        hypotheses, seconds, too_long, possible, sum(map(len, hypotheses)) + possible, capped, approximate
    )


def capped_note(answers: Sequence[Translated]) -> str:
    """A note on how many translations the length limit has ended; empty: none."""
    limits = sorted({limit for answer in answers for limit in answer.capped.values()})
    if not limits:
        return ""
    number, sentences = sum(len(answer.capped) for answer in answers), sum(answer.sentences for answer in answers)
    limit = f"{limits[0]:,}" if len(limits) == 1 else f"{limits[0]:,} to {limits[-1]:,}"
    return f"{number:,} of {sentences:,} translations are cut off at the length limit of {limit} symbols"


def share_identical(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """The share of sentences whose two translations are equal, symbol by symbol; 1 if there are no sentences."""
    return sum(one == other for one, other in zip(ours, theirs)) / max(1, len(ours)) if ours else 1.0
