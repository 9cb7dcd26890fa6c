"""A translation data set whose students read sources with noise, while teachers read the clean ones."""

import functools
import logging
import math
from random import Random
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from fairseq.data import data_utils, encoders
from omegaconf import OmegaConf
from torch import Tensor

from kd_plugin.corpus.noise import FLAG, Noise
from kd_plugin.corpus.subword_checks import ADDED, check_model, kind_of
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.errors import KDPluginError

logger = logging.getLogger(__name__)

CLEAN = "clean_source"  # in a batch with noise: the {src_tokens, src_lengths} that a teacher reads
COUNTS = ("n_augmented", "n_augment_left", "n_augment_read")  # sentences: changed; drawn, but left clean; all
LOOKED_AT = 100  # sentences that must not all be segmented in another way


def as_clean(batch: Dict[str, Any]) -> Dict[str, Any]:
    """The batch as a teacher reads it."""
    clean = batch.get(CLEAN)
    return batch if clean is None else {**batch, "net_input": {**batch["net_input"], **clean}}


def counts_of(batch: Dict[str, Any]) -> Dict[str, int]:
    """What is logged of a batch; the same keys for every one."""
    return {key: batch.get(key, 0) for key in COUNTS}


class SourceText(NamedTuple):
    """Turns a source's indices into raw text and back.

    dictionary: of the source
    encode, decode: from raw text to symbols with spaces between them, and back
    """

    dictionary: Any
    encode: Callable[[str], str]
    decode: Callable[[str], str]

    def changed(self, tokens: Tensor, change: Callable[[str], str]) -> Optional[Tensor]:
        """(length,) the indices of a sentence whose text `change` has changed; the same tensor if it changes nothing;
        None: its text does not lead back to its indices.

        Symbols that users add before or after a sentence, such as language tags, stay.
        """
        indices, symbols = tokens.tolist(), self.dictionary.symbols
        begin, end = 0, len(indices)
        while begin < end and ADDED.fullmatch(symbols[indices[begin]]):
            begin += 1
        while end > begin and ADDED.fullmatch(symbols[indices[end - 1]]):
            end -= 1
        inner = indices[begin:end]
        text = self.decode(" ".join(symbols[index] for index in inner))
        if self._indices(text) != inner:
            return None
        after = change(text)
        found = self._indices(after) if inner and after != text else inner
        if not found or found == inner:
            return tokens
        return tokens.new_tensor([*indices[:begin], *found, *indices[end:]])

    def _indices(self, text: str) -> List[int]:
        return [self.dictionary.index(symbol) for symbol in self.encode(text).split()]


def source_text(dictionary: Any, bpe: Any) -> SourceText:
    """The text of a dictionary's symbols, by fairseq's --bpe.

    Args:
        bpe: the configuration of --bpe; None: symbols are words

    Raises:
        KDPluginError: the symbols are parts of words by another tool, or the model cannot be opened or is another one
    """
    name = getattr(bpe, "_name", None) if bpe else None
    kind = kind_of(dictionary.symbols)
    if name is None and kind is not None:
        raise KDPluginError(
            f"{FLAG}: the source dictionary has the symbols of {kind}, whose model turns text into symbols. Remedy: "
            f"--bpe {kind} --{'sentencepiece-model' if kind == 'sentencepiece' else 'bpe-codes'} FILE"
        )
    if name is None:
        return SourceText(dictionary, str, str)
    if name != "sentencepiece":
        try:
            opened = encoders.build_bpe(bpe)
        except Exception as error:  # fairseq's tools raise all kinds
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise KDPluginError(
                f"--bpe {name}: {why}. Remedy: its own flags, such as --bpe-codes FILE, and the package that it needs"
            ) from error
        return SourceText(dictionary, opened.encode, opened.decode)
    if bpe.sentencepiece_enable_sampling:
        raise KDPluginError(
            f"{FLAG}: --sentencepiece-enable-sampling segments a text differently each time. Remedy: leave it out"
        )
    if OmegaConf.is_missing(bpe, "sentencepiece_model"):
        raise KDPluginError("--bpe sentencepiece: there is no model. Remedy: --sentencepiece-model FILE")
    subwords = Subwords(bpe.sentencepiece_model)
    check_model(str(subwords), subwords.pieces, dictionary.symbols, "the source dictionary")
    return SourceText(dictionary, functools.partial(_encoded, subwords), functools.partial(_decoded, subwords))


# not inside a function, so that workers can pickle them
def _encoded(subwords: Subwords, text: str) -> str:
    return " ".join(subwords.encode(text))


def _decoded(subwords: Subwords, symbols: str) -> str:
    return subwords.decode(symbols.split(" "))


class NoisyCollater:
    """Wraps the collater of fairseq's LanguagePairDataset. What happens to a sentence depends only on the seed, the
    epoch and its index.

    Args:
        dataset: the training's; its `set_epoch` will tell the epoch
        longest: the most symbols of a source; None: any
        budget: --max-tokens; None: any number per batch
    """

    def __init__(
        self, dataset: Any, text: SourceText, noise: Noise, seed: int, longest: Optional[int], budget: Optional[int]
    ):
        self._collater, self._set_epoch = dataset.collater, dataset.set_epoch
        self._dataset, self._text, self._noise, self._seed = dataset, text, noise, seed
        self._longest, self._budget = longest, budget
        self._epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """As fairseq's."""
        self._set_epoch(epoch)
        self._epoch = epoch

    def __call__(self, samples: List[Dict[str, Any]], *args: Any, **kwargs: Any) -> Dict[str, Any]:
        if not samples:
            empty: Dict[str, Any] = self._collater(samples, *args, **kwargs)
            return empty
        clean = {int(sample["id"]): sample["source"] for sample in samples}
        room = math.inf if self._longest is None else self._longest
        if self._budget is not None:  # the batch was filled with clean sentences
            room = min(room, max(*map(len, clean.values()), self._budget // len(samples)))
        noisy, left = {}, 0
        for index, tokens in clean.items():
            draw = Random(f"{self._seed}:{self._epoch}:{index}")
            kinds = self._noise.drawn(draw)
            if not kinds:
                continue
            found = self._text.changed(tokens, functools.partial(self._noise.added, kinds=kinds, draw=draw))
            if found is None or len(found) > max(room, len(tokens)):
                left += 1
            elif found is not tokens:
                noisy[index] = found
        changed = [{**sample, "source": noisy.get(int(sample["id"]), sample["source"])} for sample in samples]
        batch: Dict[str, Any] = self._collater(changed, *args, **kwargs)
        batch.update(zip(COUNTS, (len(noisy), left, len(samples))))
        if noisy:
            batch[CLEAN] = self._clean([clean[index] for index in batch["id"].tolist()])
        return batch

    def _clean(self, sources: List[Tensor]) -> Dict[str, Tensor]:
        data = self._dataset
        tokens = data_utils.collate_tokens(
            sources, data.src_dict.pad(), data.eos, data.left_pad_source, pad_to_multiple=data.pad_to_multiple
        )
        return {"src_tokens": tokens, "src_lengths": torch.tensor([len(source) for source in sources])}


def add_noise(
    dataset: Any, text: SourceText, noise: Noise, seed: int, longest: Optional[int], budget: Optional[int]
) -> None:
    """Makes the batches of a LanguagePairDataset noisy. Arguments as for NoisyCollater.

    Raises:
        KDPluginError: the text of none of the first sentences leads back to its symbols
    """
    looked_at = [dataset[at]["source"] for at in range(min(LOOKED_AT, len(dataset)))]
    left = sum(text.changed(tokens, str) is None for tokens in looked_at)
    if looked_at and left == len(looked_at):
        raise KDPluginError(
            f"{FLAG}: --bpe segments none of the first {left} sentences as the training data are segmented. Remedy: "
            "the --bpe and the model that they were segmented with"
        )
    dataset.collater = NoisyCollater(dataset, text, noise, seed, longest, budget)
    dataset.set_epoch = dataset.collater.set_epoch
    logger.info(
        f"{FLAG} {noise}: {left} of the first {len(looked_at)} sentences are segmented otherwise and stay clean"
    )
