"""Translate a corpus with the teacher, for sequence-level distillation (Kim & Rush 2016).

Equal source lines are translated once. An empty line's translation is empty; a line that is too long for the model has
none, and both are counted, as are the lines with a translation that ends at the length limit.
"""

import functools
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from fairseq.data.data_utils import infer_language_pair

from kd_plugin.checkpoints.language_tokens import check_source_token
from kd_plugin.corpus.destination import Destination, TranslationSession, run_session
from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.sources import Sentence, TextSource, data_folders, group_equal, open_binarised, shares
from kd_plugin.corpus.subword_checks import check_known, check_text
from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.decoding.base import ModelOptions, Scored, Settings
from kd_plugin.decoding.ctranslate2 import CTranslate2Decoder
from kd_plugin.decoding.fairseq import DTYPES, Checkpoints, FairseqDecoder, checkpoints_of, default_dtype
from kd_plugin.decoding.length_limit import is_capped
from kd_plugin.decoding.models import UNKNOWN, in_batches
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.sharded_folder import Plan
from kd_plugin.runners.jobs import Job, device_of

EMPTY, TOO_LONG, CAPPED = "empty_lines", "too_long_lines", "capped_lines"
# <unk>, in what the model reads and in what it writes
UNKNOWN_SOURCE, UNKNOWN_TARGET = "lines_with_unknown_symbols", "translations_with_unknown_symbols"


class Corpus(NamedTuple):
    """What to translate, and how: the options of `kd-plugin decode`."""

    data: Optional[str]
    input: Optional[str]
    gen_subset: str
    models: ModelOptions
    subwords: SubwordOptions
    engine: str
    compute_type: str
    max_tokens: int
    search: Settings
    seed: int
    shard_sentences: int
    job: Job
    to: Destination


def decode(args: Corpus) -> None:
    """Write this job's share of a folder of translations."""
    check_languages(args.models.source_lang, args.models.target_lang)
    args.job.check()
    args.search.check()
    if (args.data is None) == (args.input is None):
        raise KDPluginError("kd-plugin decode: needs either DATA (binarised) or --input FILE (raw text)")
    if args.engine == "fairseq" and args.compute_type not in ("auto", *DTYPES):
        raise KDPluginError(f"--compute-type {args.compute_type}: --engine fairseq computes in {', '.join(DTYPES)}")
    manifest = run_session(args.to, args.job, "decode", functools.partial(Session, args))
    if manifest is not None:
        _say_unknown(args, manifest.counts)


def _say_unknown(args: Corpus, counts: Dict[str, int]) -> None:
    """What can be done about unknown symbols in what was written."""
    # shards of an earlier version may not have counted them
    lines, translations = counts.get(UNKNOWN_SOURCE, 0), counts.get(UNKNOWN_TARGET, 0)
    if translations:
        print(
            f"{args.to.output}: {translations:,} translations hold unknown symbols. kd-plugin filter drops them; with "
            "--unkpen inf the model writes none"
        )
    if lines and args.data is not None:
        print(
            f"{args.data}: in {lines:,} lines of {args.gen_subset} a part of the source is lost: it was not in the "
            "dictionary when they were binarised, and the translations' source has the unknown symbol in its place. "
            "kd-plugin filter drops them; --input RAW instead of DATA decodes the original text and keeps it"
        )


class Session(TranslationSession):
    """A corpus and a teacher, ready to write any shard. number: of the worker"""

    def __init__(self, args: Corpus, number: int):
        self._args, self.settings, path = args, args.search, args.models.path
        self.output = Path(args.to.output)
        folder = None if args.data is None else data_folders(args.data, args.gen_subset)[0]
        inferred = infer_language_pair(folder) if folder is not None and Path(folder).is_dir() else (None, None)
        # fairseq-preprocess --only-source calls the target None
        languages = [None if lang == "None" else lang for lang in inferred]
        checkpoints = self._checkpoints = checkpoints_of(args.models, languages)
        if checkpoints.languages is None:
            raise KDPluginError(f"--path {path}: its languages are not in the checkpoint. Remedy: -s LANG -t LANG")
        self.languages = checkpoints.languages
        self.settings.check_vocabulary(len(checkpoints.target_dictionary))
        check_languages(*self.languages, where=path)
        subwords = self._subwords = args.subwords.open()
        dictionary = checkpoints.source_dictionary
        subwords.check(path, dictionary.symbols, checkpoints.target_dictionary.symbols)
        for side, one in zip((dictionary, checkpoints.target_dictionary), subwords):
            one.check_joining(side.symbols)
        self.source: Any
        if args.input is not None:
            self.source = TextSource(args.input, subwords.source)
            texts = (sentence.text for sentence in self.source.read(range(len(self.source))))
            has_model = subwords.source.path is not None
            check_text(self.source.marks, has_model, dictionary.symbols, f"--input {args.input}")
            joined = dictionary.symbols == checkpoints.target_dictionary.symbols
            subwords.check_sides(texts, f"--input {args.input}", joined)
        else:
            assert args.data is not None
            self.source = open_binarised(args.data, args.gen_subset, self.languages, dictionary, subwords.source)
        self.input_lines = self.lines = len(self.source)
        self._groups = group_equal(self.source.hashes)
        self._check_any(args)
        self.plans = shares(self._groups, args.shard_sentences)
        self._device = device_of(number)
        self._compute_type = args.compute_type
        if self._compute_type == "auto":
            self._compute_type = default_dtype(self._device)
        search: Dict[str, Any] = self.settings._asdict()
        if self.settings.sampling:
            search["seed"] = args.seed
        self.identity = {
            "verb": "decode",
            "engine": args.engine,
            "compute_type": self._compute_type,
            "models": checkpoints.identity(),
            "overrides": checkpoints.overrides,
            "languages": self.languages,
            "source": self.source.identity(),
            "search": search,
            "max_tokens": args.max_tokens,
            "shard_sentences": args.shard_sentences,
        }
        if subwords.target.identity() != subwords.source.identity():
            self.identity["target_subwords"] = subwords.target.identity()
        self._model_folder = self._converted(checkpoints) if args.engine == "ctranslate2" else None

    def _check_any(self, args: Corpus) -> None:
        """A corpus of nothing, or of some kinds of blank lines, is a mistake."""
        few = self._groups.lines[self._groups.starts[:-1]] if len(self._groups) < 9 else []
        if len(few) == len(self._groups) and not any(sentence.tokens for sentence in self.source.read(few)):
            name = f"--input {args.input}" if args.input is not None else f"{args.data}, --gen-subset {args.gen_subset}"
            raise KDPluginError(f"{name}: no sentence in its {len(self.source):,} lines. Remedy: a corpus")

    def _converted(self, checkpoints: Checkpoints) -> Path:
        """Where the CTranslate2 model is to be."""
        if len(checkpoints.paths) > 1:
            raise KDPluginError("--engine ctranslate2 runs one model. Remedy: --engine fairseq for an ensemble")
        # by all that decides how it is converted: a folder is used again by the same job alone
        name = f"model-ctranslate2-{digest_of([checkpoints.identity(), checkpoints.overrides, self.languages])[:16]}"
        return self.output / name

    def prepare(self) -> None:
        """Convert the model: once for all workers and for later runs."""
        from kd_plugin.checkpoints.ctranslate2_models import convert

        if self._model_folder is not None and not self._model_folder.is_dir():
            convert(self._checkpoints.first, self._model_folder)
        if self._model_folder is not None or not self._args.job.is_here:
            self._checkpoints.let_go()

    @functools.cached_property
    def _decoder(self) -> Any:
        """Opened by who translates, and not by who only shares the work out."""
        device, compute_type = self._device, self._compute_type
        if self._model_folder is None:
            return FairseqDecoder(self._checkpoints, self.settings, device, DTYPES[compute_type])
        index = device.index or 0
        return CTranslate2Decoder(
            self._model_folder, self.settings, device.type, compute_type, 0, index, self._checkpoints
        )

    def __call__(self, plan: Plan) -> Plan:
        """Translate a shard and write it."""
        groups = [self._groups.ids(group) for group in range(plan.first, plan.last)]
        sentences = list(self.source.read([ids[0] for ids in groups]))
        source = self._checkpoints.source_dictionary
        check_source_token(self._checkpoints.source_token, (one.tokens for one in sentences), self._args.models.path)
        has_model = self._subwords.source.path is not None
        check_known((sentence.tokens for sentence in sentences), source.indices, has_model)
        answers, capped = self._translate(sentences, plan.number)
        counts = dict.fromkeys((EMPTY, TOO_LONG, CAPPED, UNKNOWN_SOURCE, UNKNOWN_TARGET), 0)
        counts[CAPPED] = sum(len(groups[at]) for at in capped)
        records = []
        for ids, sentence, answer in zip(groups, sentences, answers):
            if not sentence.tokens:
                counts[EMPTY] += len(ids)
                answer = [([], 0.0)]
            elif answer is None:
                counts[TOO_LONG] += len(ids)
                answer = []
            counts[UNKNOWN_SOURCE] += len(ids) * any(source.index(token) == source.unk() for token in sentence.tokens)
            counts[UNKNOWN_TARGET] += sum(UNKNOWN in tokens for tokens, _ in answer)
            hypotheses = [Hypothesis(self._subwords.target.decode(tokens), score) for tokens, score in answer]
            records.append(Record(ids, sentence.text, hypotheses))
        self.folder.write_records(plan.name, records, counts)
        return plan

    def _translate(self, sentences: List[Sentence], shard: int) -> Tuple[List[Optional[List[Scored]]], List[int]]:
        """The translations of each sentence, None where it is empty or too long; and which ones the limit has ended."""
        answers: List[Optional[List[Scored]]] = [None] * len(sentences)
        capped: List[int] = []
        # by shard, so that draws depend neither on other shards nor on a restart
        self._decoder.start_draws((self._args.seed * 1_000_003 + shard) % 2**32)
        tokens = [sentence.tokens for sentence in sentences]
        for places, translated, limit in in_batches(self._decoder, tokens, self._args.max_tokens):
            for place, answer in zip(places, translated):
                answers[place] = answer
                if is_capped(answer, limit):
                    capped.append(place)
            self.progress(len(places))
        self.progress(answers.count(None))
        return answers, capped
