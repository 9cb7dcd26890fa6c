"""Translate a corpus with the teacher, for sequence-level distillation (Kim & Rush 2016).

Equal source lines are translated once. An empty line's translation is empty; a line that is too long for the model has
no translation. Both are counted, as are the lines with a translation that ends at the length limit.
"""

import functools
from pathlib import Path
from typing import Dict, NamedTuple, Optional

from kd_plugin.corpus.destination import Destination, TranslationSession, run_session
from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.sources import group_equal, shares
from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.decoding.base import DTYPE_NAMES, FolderOptions, ModelOptions, Settings
from kd_plugin.decoding.engine import Answer, engine_for, open_engine
from kd_plugin.decoding.http.options import HttpOptions
from kd_plugin.decoding.symbol_engines import UNKNOWN_SOURCE, UNKNOWN_TARGET
from kd_plugin.errors import KDPluginError
from kd_plugin.files.sharded_folder import Plan
from kd_plugin.runners.jobs import Job

EMPTY = "empty_lines"


class Corpus(NamedTuple):
    """What to translate, and how: the options of `kd-plugin decode`."""

    data: Optional[str]
    input: Optional[str]
    models: ModelOptions
    folder: FolderOptions
    subwords: SubwordOptions
    http: HttpOptions
    engine: str
    search: Settings
    seed: int
    shard_sentences: int
    job: Job
    to: Destination
    gen_subset: str = "train"
    compute_type: str = "auto"
    max_tokens: int = 4000


def decode(args: Corpus) -> None:
    """Write this job's share of a folder of translations."""
    check_languages(args.models.source_lang, args.models.target_lang)
    args.job.check()
    if args.engine == "http":
        # the server does the work; this machine's GPUs do not determine how many processes should wait for it
        args = args._replace(job=args.job._replace(workers=args.job.workers or 1))
    else:
        args.search.check()
    if (args.data is None) == (args.input is None):
        raise KDPluginError("kd-plugin decode: needs either DATA (binarised) or --input FILE (raw text)")
    if engine_for(args) == "fairseq" and args.compute_type not in ("auto", *DTYPE_NAMES):
        raise KDPluginError(
            f"--compute-type {args.compute_type}: --engine fairseq computes in {', '.join(DTYPE_NAMES)}"
        )
    manifest = run_session(args.to, args.job, "decode", functools.partial(Session, args))
    if manifest is not None:
        _say_unknown(args, manifest.counts)


def _say_unknown(args: Corpus, counts: Dict[str, int]) -> None:
    """Say what can be done about unknown symbols in the output."""
    # shards of an earlier version may not have counted them
    lines, translations = counts.get(UNKNOWN_SOURCE, 0), counts.get(UNKNOWN_TARGET, 0)
    if translations:
        print(
            f"{args.to.output}: {translations:,} translations contain unknown symbols. kd-plugin filter drops them; "
            "with --unkpen inf the model writes none"
        )
    if lines and args.data is not None:
        print(
            f"{args.data}: in {lines:,} lines of {args.gen_subset} part of the source is lost: it was not in the "
            "dictionary when they were binarised, and the translations' source has the unknown symbol in its place. "
            "kd-plugin filter drops them; with --input RAW instead of DATA, the original text is decoded and kept"
        )


class Session(TranslationSession):
    """A corpus and an engine, ready to write any shard. number: the worker's"""

    def __init__(self, args: Corpus, number: int):
        self._args = args
        self.output = Path(args.to.output)
        engine = self._engine = open_engine(args, number)
        self.languages = engine.languages
        self.input_lines = self.lines = len(engine.source)
        self._groups = group_equal(engine.source.hashes)
        self._check_any(args)
        self.plans = shares(self._groups, args.shard_sentences)
        self.identity = {
            **engine.identity(),
            "verb": "decode",
            "languages": self.languages,
            "source": engine.source.identity(),
            "shard_sentences": args.shard_sentences,
        }

    def _check_any(self, args: Corpus) -> None:
        """Refuse a corpus that is empty or has only blank lines, which is a mistake."""
        few = self._groups.lines[self._groups.starts[:-1]] if len(self._groups) < 9 else []
        if len(few) == len(self._groups) and not any(sentence.tokens for sentence in self._engine.source.read(few)):
            name = f"--input {args.input}" if args.input is not None else f"{args.data}, --gen-subset {args.gen_subset}"
            raise KDPluginError(f"{name}: no sentence in its {self.lines:,} lines. Remedy: give a corpus with text")

    def prepare(self) -> None:
        """As Session's."""
        self._engine.prepare()

    def summary(self) -> str:
        """As TranslationSession's."""
        return self._engine.summary()

    def __call__(self, plan: Plan) -> Plan:
        """Translate a shard and write it."""
        groups = [self._groups.ids(group) for group in range(plan.first, plan.last)]
        sentences = list(self._engine.source.read([ids[0] for ids in groups]))
        full = [sentence for sentence in sentences if sentence.tokens]
        self.progress(len(sentences) - len(full))
        answers = iter(self._engine(full, plan.number, self.progress))
        counts = dict.fromkeys((EMPTY, *self._engine.counted), 0)
        records = []
        for ids, sentence in zip(groups, sentences):
            answer = next(answers) if sentence.tokens else Answer([Hypothesis("", 0.0)], (EMPTY,))
            for name in answer.lines:
                counts[name] += len(ids)
            for name in answer.translations:
                counts[name] += 1
            for name, amount in answer.amounts.items():
                counts[name] += amount
            records.append(Record(ids, sentence.text, answer.hypotheses))
        self.folder.write_records(plan.name, records, counts)
        self._engine.written(plan.number)
        return plan
