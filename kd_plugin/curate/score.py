"""Scores for translations, which select and filter use; the scorers are in kd_plugin.curate.scorers."""

import functools
from pathlib import Path
from typing import NamedTuple, Optional

from kd_plugin.corpus.destination import Destination, TranslationSession, run_session
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.subwords import SIDES, SubwordOptions
from kd_plugin.corpus.translations import Translations
from kd_plugin.curate.by_command import CommandScorer
from kd_plugin.curate.by_folder import FolderScorer
from kd_plugin.curate.by_metric import open_metric
from kd_plugin.curate.by_model import ModelScorer
from kd_plugin.curate.scorers import ByModel, Scorer
from kd_plugin.decoding.base import FolderOptions, ModelOptions
from kd_plugin.errors import KDPluginError
from kd_plugin.files.sharded_folder import Plan
from kd_plugin.runners.jobs import Job, device_of

TOO_LONG = "dropped_too_long"
MAX_TOKENS, BATCH_SIZE = 4000, 16  # per batch: tokens of a model, with padding; translations of a metric


class Scoring(NamedTuple):
    """The translations to score, and the scorer: the options of `kd-plugin score`.

    metric, command, models.path: exactly one is not None. max_tokens, batch_size: None: the default
    """

    input_dir: str
    metric: Optional[str]
    command: Optional[str]
    models: ModelOptions
    folder: FolderOptions
    subwords: SubwordOptions
    compute_type: str
    max_tokens: Optional[int]
    batch_size: Optional[int]
    job: Job
    to: Destination


def score(args: Scoring) -> None:
    """Write this job's share of the translations, with scores."""
    check_flags(args)
    check_languages(args.models.source_lang, args.models.target_lang)
    args.job.check()
    Translations(Path(args.input_dir)).check_any()
    run_session(args.to, args.job, "score", functools.partial(Session, args))


def check_flags(args: Scoring) -> None:
    """Refuse flags that do not name exactly one scorer, or that it would ignore."""
    asked = {"--path": args.models.path, "--metric": args.metric, "--command": args.command}
    given = [flag for flag, value in asked.items() if value is not None]
    if len(given) != 1:
        raise KDPluginError(
            f"{' and '.join(given) or 'neither --path nor --metric nor --command'}: exactly one of the three is "
            "needed. Remedy: --path CHECKPOINT, --metric comet-kiwi, or --command with your own program"
        )
    (flag,) = given
    of_models = {
        "--model-overrides": args.models.model_overrides != ModelOptions._field_defaults["model_overrides"],
        "--dict-dir": args.models.dict_dir,
        "--user-dir": args.models.user_dir,
        "--source-lang": args.models.source_lang,
        "--target-lang": args.models.target_lang,
        "--compute-type": args.compute_type != "auto",
        "--max-tokens": args.max_tokens is not None,
        "--sentencepiece-model": args.subwords.sentencepiece_model,
        **dict.fromkeys(args.folder.given, True),
        **{f"--{side}-sentencepiece-model": getattr(args.subwords, f"{side}_sentencepiece_model") for side in SIDES},
    }
    unread = [name for name, value in of_models.items() if value and flag != "--path"]
    if args.batch_size is not None and flag != "--metric":
        unread.append("--batch-size")
    if unread:
        raise KDPluginError(f"{', '.join(unread)}: of no effect with {flag}. Remedy: leave it out")


class Session(TranslationSession):
    """Translations and a scorer, ready to score any shard. number: the worker's"""

    def __init__(self, args: Scoring, number: int):
        self.output = Path(args.to.output)
        self._translations = Translations(Path(args.input_dir))
        manifest = self._translations.manifest
        self.languages, self.input_lines, self.lines = manifest.languages, manifest.input_lines, manifest.lines
        # each shard of the input becomes one of the output
        self.plans = [Plan(at, at, at + 1, shard.hypotheses) for at, shard in enumerate(manifest.shards)]
        self._job, self._scorer = args.job, self._open(args, number)
        self.identity = {"verb": "score", **self._scorer.identity, "input": manifest.digest()}

    def _open(self, args: Scoring, number: int) -> Scorer:
        if args.command is not None:
            return CommandScorer(args.command)
        device = device_of(number)
        if args.metric is not None:
            return open_metric(args.metric, args.batch_size or BATCH_SIZE, device)
        max_tokens, folder = args.max_tokens or MAX_TOKENS, self._translations.folder
        by = ByModel(args.subwords, args.compute_type, max_tokens, self.languages, folder, device)
        if Path(args.models.path).is_dir():
            return FolderScorer(args.models, args.folder, by)
        args.folder.refuse(f"--path {args.models.path} is not a folder of another toolkit")
        return ModelScorer(args.models, by)

    def prepare(self) -> None:
        """Free the scorer if separate workers open their own."""
        if not self._job.is_here:
            self._scorer.let_go()

    def __call__(self, plan: Plan) -> Plan:
        """Score a shard's translations and write them in the same order."""
        records = list(self._translations.records_of(self._translations.manifest.shards[plan.number]))
        pairs = [(record.source, hypothesis.text) for record in records for hypothesis in record.hypotheses]
        scores = iter(self._scorer(pairs, self.progress))
        scored, dropped = [], 0
        for record in records:
            with_scores = [(hypothesis, next(scores)) for hypothesis in record.hypotheses]
            left = [hypothesis._replace(score=score) for hypothesis, score in with_scores if score is not None]
            dropped += len(record.hypotheses) - len(left)
            scored.append(record._replace(hypotheses=left))
        self.folder.write_records(plan.name, scored, {TOO_LONG: dropped})
        return plan
