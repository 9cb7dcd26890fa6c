"""Engines that translate symbols: fairseq, and CTranslate2 with a checkpoint's vocabulary."""

import functools
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

from fairseq.data.data_utils import infer_language_pair

from kd_plugin.checkpoints.language_tokens import check_source_token
from kd_plugin.corpus.hypotheses import Hypothesis
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.sources import Sentence, Source, TextSource, data_folders, open_binarised
from kd_plugin.corpus.subword_checks import check_known, check_text
from kd_plugin.corpus.subwords import Segmentation
from kd_plugin.decoding.base import UNKNOWN, Decoder, Scored, Tokens
from kd_plugin.decoding.ctranslate2 import CTranslate2Decoder
from kd_plugin.decoding.engine import Answer, Engine
from kd_plugin.decoding.fairseq import DTYPES, Checkpoints, FairseqDecoder, checkpoints_of, default_dtype
from kd_plugin.decoding.length_limit import is_capped
from kd_plugin.decoding.models import in_batches
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.runners.jobs import device_of

if TYPE_CHECKING:
    from kd_plugin.decoding.decode import Corpus

TOO_LONG, CAPPED = "too_long_lines", "capped_lines"
APPROXIMATE = "approximate_lines"  # see Decoder.approximate
# <unk>, in the model's input and in its output
UNKNOWN_SOURCE, UNKNOWN_TARGET = "lines_with_unknown_symbols", "translations_with_unknown_symbols"


class SymbolEngine(Engine):
    """A model with a vocabulary: text is segmented for it, and its translations are joined again.

    A sentence that is too long for the model has no translation. It is counted, as are sentences with a translation
    that ends at the length limit, and unknown symbols on either side.

    Args:
        number: the worker's
    """

    counted: Tuple[str, ...] = (TOO_LONG, CAPPED, UNKNOWN_SOURCE, UNKNOWN_TARGET)
    subwords: Segmentation

    def __init__(self, args: "Corpus", number: int):
        self._args = args
        self._device = device_of(number)
        self._compute_type = args.compute_type
        if self._compute_type == "auto":
            self._compute_type = default_dtype(self._device)

    @abstractmethod
    def open_decoder(self) -> Decoder:
        """The model, ready to translate."""

    def check(self, sentences: Sequence[Sentence]) -> None:
        """Refuse sentences that do not fit the model."""

    @abstractmethod
    def is_known(self, token: str) -> bool:
        """Whether a symbol of the source is in the model's vocabulary."""

    def identity(self) -> Dict[str, Any]:
        """As Engine's."""
        args, search = self._args, self._args.search._asdict()
        if args.search.sampling:
            search["seed"] = args.seed
        return {"compute_type": self._compute_type, "search": search, "max_tokens": args.max_tokens}

    @functools.cached_property
    def _decoder(self) -> Decoder:
        """Opened by the worker that translates, not by the process that only distributes the work."""
        return self.open_decoder()

    def __call__(self, sentences: Sequence[Sentence], shard: int, progress: Callable[[int], Any]) -> List[Answer]:
        """As Engine's."""
        self.check(sentences)
        answers: List[Optional[List[Scored]]] = [None] * len(sentences)
        capped, approximate = set(), set()
        # seeded by shard, so that draws depend neither on other shards nor on a restart
        self._decoder.start_draws((self._args.seed * 1_000_003 + shard) % 2**32)
        tokens = [sentence.tokens for sentence in sentences]
        for places, translated, limit in in_batches(self._decoder, tokens, self._args.max_tokens):
            for place, answer in zip(places, translated):
                answers[place] = answer
                if is_capped(answer, limit):
                    capped.add(place)
            approximate |= {places[at] for at in self._decoder.approximate}
            progress(len(places))
        progress(answers.count(None))
        found = ({CAPPED: at in capped, APPROXIMATE: at in approximate} for at in range(len(answers)))
        return [self._answer(*one) for one in zip(tokens, answers, found)]

    def _answer(self, source: Tokens, answer: Optional[List[Scored]], found: Dict[str, bool]) -> Answer:
        found = {
            **found,
            TOO_LONG: answer is None,
            UNKNOWN_SOURCE: not all(map(self.is_known, source)),
        }
        scored = answer or []
        hypotheses = [Hypothesis(self.subwords.target.decode(tokens), score) for tokens, score in scored]
        unknown = (UNKNOWN_TARGET,) * sum(UNKNOWN in tokens for tokens, _ in scored)
        return Answer(hypotheses, tuple(name for name, holds in found.items() if holds), unknown)


class CheckpointEngine(SymbolEngine):
    """fairseq checkpoints, with fairseq's own search or CTranslate2's with the converted model.

    Args:
        engine: fairseq or ctranslate2
    """

    def __init__(self, args: "Corpus", number: int, engine: str):
        super().__init__(args, number)
        self._engine, path = engine, args.models.path
        args.folder.refuse(f"--path {path} is not a folder of another toolkit")
        checkpoints = self._checkpoints = checkpoints_of(args.models, _inferred_languages(args))
        if checkpoints.languages is None:
            raise KDPluginError(f"--path {path}: its languages are not in the checkpoint. Remedy: -s LANG -t LANG")
        self.languages = checkpoints.languages
        args.search.check_vocabulary(len(checkpoints.target_dictionary))
        check_languages(*self.languages, where=path)
        subwords = self.subwords = args.subwords.open()
        dictionaries = checkpoints.source_dictionary, checkpoints.target_dictionary
        subwords.check(path, *(dictionary.symbols for dictionary in dictionaries))
        for dictionary, one in zip(dictionaries, subwords):
            one.check_joining(dictionary.symbols)
        self._has_model = subwords.source.path is not None
        self.source = self._open_source()
        self._model_folder = self._converted() if engine == "ctranslate2" else None

    def _open_source(self) -> Source:
        args, checkpoints, subwords = self._args, self._checkpoints, self.subwords
        dictionary = checkpoints.source_dictionary
        if args.input is None:
            assert args.data is not None
            return open_binarised(args.data, args.gen_subset, self.languages, dictionary, subwords.source)
        source = TextSource(args.input, subwords.source)
        check_text(source.marks, self._has_model, dictionary.symbols, f"--input {args.input}")
        texts = (sentence.text for sentence in source.read(range(len(source))))
        joined = dictionary.symbols == checkpoints.target_dictionary.symbols
        subwords.check_sides(texts, f"--input {args.input}", joined)
        return source

    def identity(self) -> Dict[str, Any]:
        """As Engine's."""
        found = {
            **super().identity(),
            "engine": self._engine,
            "models": self._checkpoints.identity(),
            "overrides": self._checkpoints.overrides,
        }
        if self.subwords.target.identity() != self.subwords.source.identity():
            found["target_subwords"] = self.subwords.target.identity()
        return found

    def prepare(self) -> None:
        """Convert the model: once for all workers and for later runs."""
        from kd_plugin.checkpoints.ctranslate2_models import convert

        if self._model_folder is not None and not self._model_folder.is_dir():
            convert(self._checkpoints.first, self._model_folder)
        if self._model_folder is not None or not self._args.job.is_here:
            self._checkpoints.let_go()

    def open_decoder(self) -> Decoder:
        """As SymbolEngine's."""
        device, compute_type, settings = self._device, self._compute_type, self._args.search
        if self._model_folder is None:
            return FairseqDecoder(self._checkpoints, settings, device, DTYPES[compute_type])
        index = device.index or 0
        return CTranslate2Decoder(self._model_folder, settings, device.type, compute_type, 0, index, self._checkpoints)

    def check(self, sentences: Sequence[Sentence]) -> None:
        """As SymbolEngine's."""
        token, indices = self._checkpoints.source_token, self._checkpoints.source_dictionary.indices
        check_source_token(token, (one.tokens for one in sentences), self._args.models.path)
        check_known((sentence.tokens for sentence in sentences), indices, self._has_model)

    def is_known(self, token: str) -> bool:
        """As SymbolEngine's."""
        dictionary = self._checkpoints.source_dictionary
        return bool(dictionary.index(token) != dictionary.unk())

    def _converted(self) -> Path:
        """Where the CTranslate2 model will be."""
        checkpoints: Checkpoints = self._checkpoints
        if len(checkpoints.paths) > 1:
            raise KDPluginError("--engine ctranslate2 runs only one model. Remedy: --engine fairseq for an ensemble")
        # named by all that determines the conversion: a folder is reused only by the same job
        name = f"model-ctranslate2-{digest_of([checkpoints.identity(), checkpoints.overrides, self.languages])[:16]}"
        return Path(self._args.to.output) / name


def _inferred_languages(args: "Corpus") -> Tuple[Optional[str], ...]:
    """The languages of the binarised data, used if the flags and the checkpoint name none."""
    folder = None if args.data is None else data_folders(args.data, args.gen_subset)[0]
    inferred = infer_language_pair(folder) if folder is not None and Path(folder).is_dir() else (None, None)
    # fairseq-preprocess --only-source calls the target None
    return tuple(None if language == "None" else language for language in inferred)
