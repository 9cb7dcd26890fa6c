"""Translating with CTranslate2: a converted model, with fairseq's search for the few sentences that need it."""

import functools
from pathlib import Path
from typing import AbstractSet, Any, Dict, List, Optional, Sequence, Tuple

import torch

from kd_plugin.checkpoints.exported import read_description
from kd_plugin.decoding.base import Around, Scored, Settings, Tokens, not_a_number
from kd_plugin.decoding.ctranslate2_search import Search
from kd_plugin.decoding.fairseq import Checkpoints, FairseqDecoder
from kd_plugin.decoding.length_limit import length_limit
from kd_plugin.errors import KDPluginError, is_out_of_memory

BEGINNING = "<s>"
PADDING = ("<blank>", "<pad>")  # CTranslate2's converter renames fairseq's to the first; other toolkits use the second
UNSAID_TOKENS = 1023  # the usual positions without end of sentence, for CTranslate2 models that do not name theirs


class CTranslate2Decoder:
    """A CTranslate2 model.

    Args:
        folder: the folder of the converted model
        compute_type: as in CTranslate2; "default" keeps the type of the stored weights
        threads: per batch; 0: CTranslate2's own choice
        device_index: which of several GPUs
        checkpoints: the checkpoints that the model was converted from, if available: fairseq then searches for the few
            sentences that would otherwise take too long
        around: symbols that the model expects around every sentence
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        device: str = "cpu",
        compute_type: str = "default",
        threads: int = 0,
        device_index: int = 0,
        checkpoints: Optional[Checkpoints] = None,
        around: Around = Around(),  # noqa: B008
    ):
        from kd_plugin.checkpoints.ctranslate2_models import open_translator, vocabulary
        from kd_plugin.checkpoints.ctranslate2_weights import check_weights

        if settings.temperature != 1.0 and not settings.sampling:
            raise KDPluginError(
                f"--temperature {settings.temperature}: CTranslate2 supports it only with --sampling. Remedy: leave it "
                "out, or --engine fairseq"
            )
        if settings.unkpen not in (0.0, float("inf")):
            raise KDPluginError(
                f"--unkpen {settings.unkpen}: CTranslate2 supports 0 and inf. Remedy: one of these, or --engine fairseq"
            )
        self._open = functools.partial(open_translator, folder, device, compute_type, threads, device_index)
        self._translator = self._open()
        check_weights(folder)
        self._settings = settings
        self._folder = folder
        self._checkpoints, self._device = checkpoints, torch.device(device, device_index)
        self._around = around
        self.approximate: AbstractSet[int] = frozenset()
        self._never = [*PADDING, *(["<unk>"] if settings.unkpen == float("inf") else [])]
        self.use_vocabulary_map = False
        self.max_source_tokens, self._max_target_tokens = most_tokens(folder, around)
        self.source_symbols = vocabulary(folder, "source")
        self.target_symbols = vocabulary(folder, "target")
        settings.check_vocabulary(len(self.target_symbols))

    @property
    def compute_type(self) -> str:
        """The type of the weights in computation, which is not always the type in the files."""
        return str(self._translator.compute_type)

    def start_draws(self, seed: int) -> None:
        """As Decoder's."""
        if self._settings.sampling:
            import ctranslate2

            ctranslate2.set_random_seed(seed)
            self._translator = self._open()  # only threads started from now on use the seed

    def length_limit(self, longest: int) -> int:
        """As Decoder's."""
        return length_limit(self._settings.max_len_a, self._settings.max_len_b, longest, self._max_target_tokens)

    def __call__(self, sentences: Sequence[Tokens]) -> List[List[Scored]]:
        """As Decoder's."""
        longest = max(map(len, sentences), default=0)
        search, limit = self._search(self.use_vocabulary_map), self.length_limit(longest)
        try:
            before, after, _ = self._around
            answers = search([[*before, *tokens, *after] for tokens in sentences], limit)
            self.approximate = search.approximate
            return [[(_said(tokens), score) for tokens, score in answer] for answer in answers]
        except FloatingPointError as error:
            raise not_a_number(str(self._folder), self.compute_type) from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # a model from another toolkit does not name its positions
            raise KDPluginError(
                f"{self._folder}: CTranslate2 cannot translate a batch with sentences of up to {longest} symbols "
                f"({error}). Remedy: use shorter sentences, or a smaller --max-len-b"
            ) from error

    def _search(self, use_vocabulary_map: bool) -> Search:
        settings = self._settings
        draws: Dict[str, Any] = {}
        if settings.sampling:
            draws = {"sampling_temperature": settings.temperature, "sampling_topk": max(0, settings.sampling_topk)}
            if settings.sampling_topp > 0:
                draws["sampling_topp"] = settings.sampling_topp
        forbidden = [symbol for symbol in self._never if symbol in self.target_symbols]
        options: Dict[str, Any] = {"use_vmap": use_vocabulary_map}
        if use_vocabulary_map:  # the symbols may not be in it
            options["disable_unk"], forbidden = "<unk>" in self._never, []
        # opened only when needed
        of_fairseq = None if self._checkpoints is None else lambda sentences: self._fairseq(sentences)
        search = settings.beam, settings.nbest, settings.lenpen
        prefix = self._around.target_prefix
        return Search(self._translator, *search, draws, forbidden, options, of_fairseq, prefix)

    @functools.cached_property
    def _fairseq(self) -> FairseqDecoder:
        assert self._checkpoints is not None
        return FairseqDecoder(self._checkpoints, self._settings._replace(nbest=self._settings.beam), self._device)


def most_tokens(folder: Path, around: Around) -> Tuple[int, int]:
    """The longest source and target of a converted model, without `around` and the end of sentence.

    CTranslate2 itself would go on beyond the model's positions, and write arbitrary symbols.
    """
    description = read_description(folder)
    unsaid = UNSAID_TOKENS - len(around.source_prefix) - len(around.source_suffix)
    source = int(description.get("max_source_tokens", unsaid))
    # earlier versions of the plugin named one limit for both
    target = description.get("max_target_tokens", description.get("max_source_tokens"))
    return source, UNSAID_TOKENS - len(around.target_prefix) if target is None else int(target)


def _said(tokens: Tokens) -> Tokens:
    """Remove the beginning of sentence, which a weak model may write and fairseq-generate never prints."""
    return [token for token in tokens if token != BEGINNING]
