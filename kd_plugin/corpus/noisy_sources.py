"""A translation data set whose students read sources with noise, while teachers read the clean ones."""

import functools
import logging
import math
from random import Random
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy as np
import torch
from fairseq.data import data_utils, encoders
from omegaconf import OmegaConf
from torch import Tensor

from kd_plugin.corpus.noise import FLAG, KINDS, Noise, kinds_of
from kd_plugin.corpus.subword_checks import ADDED, check_model, kind_of
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.errors import KDPluginError

logger = logging.getLogger(__name__)

CLEAN = "clean_source"  # in a batch with noise: the {src_tokens, src_lengths} that a teacher reads
COUNTS = ("n_augmented", "n_augment_left", "n_augment_read")  # sentences: changed; drawn, but left clean; all
LOOKED_AT = 100  # sentences that must not all be segmented in another way, and that show how much noise lengthens
NEARLY_ALL = 0.95  # of the sentences with a kind of noise fit into the room kept for them
SIZED = ("ordered_indices", "num_tokens", "num_tokens_vec")  # what makes batches of fairseq's data set


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
        dataset: the training's
        longest: the most symbols of a source; None: any
        budget: --max-tokens; None: any number per batch
    """

    def __init__(
        self, dataset: Any, text: SourceText, noise: Noise, seed: int, longest: Optional[int], budget: Optional[int]
    ):
        self._dataset = dataset
        self._text, self._noise, self._seed = text, noise, seed
        self._longest, self._budget = longest, budget
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Draws what befalls each sentence in this epoch."""
        self._epoch = epoch
        self.masks = self._noise.drawn(len(self._dataset), self._seed, epoch)

    def __call__(self, samples: List[Dict[str, Any]], *args: Any, **kwargs: Any) -> Dict[str, Any]:
        if not samples:
            return self._collated(samples, *args, **kwargs)
        clean = {int(sample["id"]): sample["source"] for sample in samples}
        room = math.inf if self._longest is None else self._longest
        if self._budget is not None:
            room = min(room, max(*map(len, clean.values()), self._budget // len(samples)))
        noisy, left = {}, 0
        for index, tokens in clean.items():
            kinds = kinds_of(self.masks[index])
            if not kinds:
                continue
            found = self.noisy(index, tokens, kinds)
            if found is None or len(found) > max(room, len(tokens)):
                left += 1
            elif found is not tokens:
                noisy[index] = found
        changed = [{**sample, "source": noisy.get(int(sample["id"]), sample["source"])} for sample in samples]
        batch = self._collated(changed, *args, **kwargs)
        batch.update(zip(COUNTS, (len(noisy), left, len(samples))))
        if noisy:
            batch[CLEAN] = self._clean([clean[index] for index in batch["id"].tolist()])
        return batch

    def noisy(self, index: int, tokens: Tensor, kinds: List[str]) -> Optional[Tensor]:
        """A sentence with noise of these kinds, as SourceText.changed gives it."""
        draw = Random(f"{self._seed}:{self._epoch}:{index}")
        return self._text.changed(tokens, functools.partial(self._noise.added, kinds=kinds, draw=draw))

    def _collated(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        found: Dict[str, Any] = type(self._dataset).collater(self._dataset, *args, **kwargs)
        return found

    def _clean(self, sources: List[Tensor]) -> Dict[str, Tensor]:
        data = self._dataset
        tokens = data_utils.collate_tokens(
            sources, data.src_dict.pad(), data.eos, data.left_pad_source, pad_to_multiple=data.pad_to_multiple
        )
        return {"src_tokens": tokens, "src_lengths": torch.tensor([len(source) for source in sources])}


class NoisySizes:
    """How long sources are with their noise, as far as it can be told before they are read: batches are filled, and
    sentences sorted, by these sizes. Otherwise a full batch of clean sentences would have no room for noise.

    Args:
        growth: by how much each kind lengthens nearly all sentences
        limit: no sentence is taken to grow beyond this
    """

    def __init__(self, dataset: Any, collater: NoisyCollater, growth: Dict[str, float], limit: float):
        self._dataset, self._collater, self._limit = dataset, collater, limit
        self._clean = np.asarray(dataset.src_sizes)
        self._growth = [growth.get(kind, 1.0) for kind in KINDS]
        self._set_sizes()

    def set_epoch(self, epoch: int) -> None:
        """As fairseq's."""
        type(self._dataset).set_epoch(self._dataset, epoch)
        self._collater.set_epoch(epoch)
        self._set_sizes()

    def _set_sizes(self) -> None:
        factors = np.ones(len(self._clean))
        for bit, growth in enumerate(self._growth):
            factors[self._collater.masks >> bit & 1 == 1] *= growth
        grown = np.ceil(self._clean * factors)
        self.sizes = np.maximum(self._clean, np.minimum(grown, self._limit)).astype(self._clean.dtype)

    def call(self, name: str, *args: Any) -> Any:
        """A method of fairseq's data set, with these sizes. Those of --max-source-positions stay the clean ones."""
        self._dataset.src_sizes = self.sizes
        try:
            return getattr(type(self._dataset), name)(self._dataset, *args)
        finally:
            self._dataset.src_sizes = self._clean


def add_noise(
    dataset: Any, text: SourceText, noise: Noise, seed: int, longest: Optional[int], budget: Optional[int]
) -> None:
    """Makes the batches of a LanguagePairDataset noisy. Arguments as for NoisyCollater.

    The batches differ from epoch to epoch: see is_noisy.

    Raises:
        KDPluginError: the text of none of the sentences looked at leads back to its symbols
    """
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).astype(int)).tolist()
    sources = {at: dataset[at]["source"] for at in looked_at}
    segmented = {at: tokens for at, tokens in sources.items() if text.changed(tokens, str) is not None}
    if sources and not segmented:
        raise KDPluginError(
            f"{FLAG}: --bpe segments none of {len(sources)} sentences as the training data are segmented. Remedy: "
            "the --bpe and the model that they were segmented with"
        )
    collater = NoisyCollater(dataset, text, noise, seed, longest, budget)
    growth = {}
    for kind in noise.chances:
        found = {at: collater.noisy(at, tokens, [kind]) for at, tokens in segmented.items()}
        ratios = [len(one) / len(segmented[at]) for at, one in found.items() if one is not None]
        growth[kind] = max(1.0, float(np.quantile(ratios, NEARLY_ALL))) if ratios else 1.0
    limit = min(math.inf if longest is None else longest, math.inf if budget is None else budget)
    sizes = NoisySizes(dataset, collater, growth, limit)
    dataset.collater, dataset.set_epoch, dataset.noisy_sizes = collater, sizes.set_epoch, sizes
    for name in SIZED:
        setattr(dataset, name, functools.partial(sizes.call, name))
    logger.info(
        f"{FLAG} {noise}: {len(sources) - len(segmented)} of {len(sources)} sentences are segmented otherwise and stay "
        f"clean; noise makes sources up to {max([1.0, *growth.values()]):.1f} times as long"
    )


def is_noisy(dataset: Any) -> bool:
    """Whether a data set's batches must be made anew in each epoch, since its sources' lengths change."""
    return hasattr(dataset, "noisy_sizes")
