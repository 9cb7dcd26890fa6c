"""The first steps of a pipeline, from the corpus to the teacher's answers, and how a step is described.

Commands run inside the output folder: the products of steps have relative names there, the user's files absolute ones.
"""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.pipeline.paths import files_in
from kd_plugin.pipeline.schema import Pipeline, Training, Words

SELECTED_BY = "reference"
PLAIN = "--task translation --criterion label_smoothed_cross_entropy"


class Step(NamedTuple):
    """
    what:     for messages
    section:  of the file, for errors
    product:  the file or folder in the output folder that it makes
    after:    names of the steps whose products it reads
    reads:    the user's files that it reads
    workers:  whether its last command takes --workers, which does not change what it makes
    resumes:  whether an interrupted one can go on with what it has left
    training: whether its log has a learning curve
    """

    name: str
    what: str
    section: str
    commands: List[Words]
    product: str
    after: List[str]
    reads: List[str]
    workers: bool = False
    resumes: bool = False
    training: bool = False


class Model(NamedTuple):
    name: str
    path: str


class Teaching:
    """The steps so far, in order."""

    def __init__(self, pipeline: Pipeline):
        self.steps: List[Step] = []
        self._pipeline, self._corpus, self._options = pipeline, pipeline.corpus, pipeline.options
        source, target = self._corpus.languages
        folder = self._corpus.prepared or "corpus"
        self._teacher: Optional[str] = None
        # what stands for itself in the commands below
        self._values: Dict[str, Any] = {
            "languages": ["--source-lang", source, "--target-lang", target],
            "vocabulary": folder,
            "spm": f"{folder}/spm.model",
            "train": self._corpus.train,
            "valid": self._corpus.valid,
            "src": source,
            "tgt": target,
        }
        self._original = f"{folder}/data-bin"
        self._prepare()
        self._teach()
        self._mixed, parts = self._pseudo()
        if self._options["cache"] is not None:
            self._cache("cache", self._mixed, parts)
        if self._options["init"] is not None:
            text = "kd-plugin init {teacher} --output init/student.pt --data {data} {languages} {more}"
            command = self._words(text, data=self._mixed, more=self._options["init"])
            self._add("init", "first weights from the teacher's", "init", [command])

    def _words(self, template: str, **values: Any) -> Words:
        """A command's words. {name} stands for a word or a part of one; alone, also for a list of words."""
        known = {**self._values, "teacher": self._teacher, **values}
        words: Words = []
        for word in template.split():
            value = known.get(word[1:-1]) if re.match(r"\{\w+\}$", word) else word.format(**known)
            words += value if isinstance(value, list) else [str(value)]
        return words

    def _add(self, name: str, what: str, section: str, commands: List[Words], product: str = "", **kind: bool) -> None:
        words = [word for command in commands for word in command]
        parts = {part for word in words for part in re.split("[:,=]", word)}
        whole = {step.product for step in self.steps if not step.training} & parts
        within = {part.partition("/")[0] for part in parts if "/" in part}
        after = [step.name for step in self.steps if step.product in whole | within]
        reads = files_in([*words, *(f"{word}.{language}" for word in words for language in self._corpus.languages)])
        self.steps.append(Step(name, what, section, commands, product or name, after, reads, **kind))

    def _data(self, name: str, what: str, section: str, trains: Sequence[str], more: Words) -> None:
        text = "python -m kd_plugin.pipeline.data {languages} --output {name} {trains} --valid {valid} {more}"
        parts = [word for prefix in trains for word in ("--train", prefix)]
        self._add(name, what, section, [self._words(text, name=name, trains=parts, more=more)])

    def _prepare(self) -> None:
        corpus = self._corpus
        if corpus.make:
            words = ["text" if word == "{folder}" else word for word in corpus.make]
            self._add("text", "the corpus's text", "corpus", [words])
        if not corpus.prepared:
            more = [word for key, value in corpus.subwords.items() for word in ("--subwords", f"{key}={value}")]
            for flag, path in (("--model", corpus.model), ("--dictionary", corpus.dictionary)):
                more += [flag, path] if path else []
            self._data("corpus", "subwords and binarised data", "corpus", [corpus.train], more)

    def _teach(self) -> None:
        self._teacher = self._pipeline.teacher
        training = self._pipeline.teacher_training
        if training is not None:
            # others look for a teacher's dictionary beside it
            copy = self._words("cp {vocabulary}/dict.txt teacher/dict.txt")
            plain = self._words(PLAIN)
            model = self._training("teacher", "the teacher", self._original, training.seed, plain, training, copy)
            self._teacher = model.path

    def _training(
        self, name: str, what: str, data: str, seed: int, objective: Words, training: Training, *more: Words
    ) -> Model:
        last, saving, every, commands = f"{name}/checkpoint_best.pt", ["--no-epoch-checkpoints"], [], []
        if training.average:
            last, number = f"{name}/averaged.pt", str(training.average)
            saving = ["--keep-last-epochs", number]
            if training.every:
                every = ["--every", str(training.every)]
                saving += ["--save-interval-updates", str(training.every), "--keep-interval-updates", number]
            text = "python -m kd_plugin.checkpoints.average {name} --last {number} {every} --output {last}"
            commands = [self._words(text, name=name, number=number, every=every, last=last)]
        text = (
            "fairseq-train {data} --save-dir {name} --seed {seed} {languages} --log-format simple --log-interval 100 "
            "--update-epoch-batch-itr True {saving} {objective} {words}"
        )
        given = {"data": data, "name": name, "seed": seed, "saving": saving, "objective": objective}
        train = self._words(text, **given, words=training.words)
        section = "teacher" if name == "teacher" else "students"
        self._add(name, what, section, [train, *commands, *more], resumes=True, training=True)
        return Model(name, last)

    def _pseudo(self) -> Tuple[str, int]:
        """The data to train on, and how many training parts it has."""
        if self._options["decode"] is None:
            return self._original, 1
        corpus, parts = self._corpus, [self._corpus.train] if self._pipeline.original else []
        parts.append(self._translated("", self._words("{train}.{src}")[0], self._words("{train}.{tgt}")))
        if corpus.monolingual:
            parts.append(self._translated("mono-", corpus.monolingual, []))
        self._data("mixed", "the training data", "mix", parts, self._words("--vocabulary {vocabulary}"))
        return "mixed/data-bin", len(parts)

    def _translated(self, prefix: str, text: str, reference: Words) -> str:
        """Decodes, scores, selects and filters; returns the prefix of the resulting text."""
        title = "the monolingual text" if prefix else "the training text"
        model = self._words("--path {teacher}") if self._teacher else []
        model += [] if self._pipeline.teacher or not model else self._words("--dict-dir {vocabulary}")
        given = [*model, *self._segmented("decode"), *(self._options["decode"] or [])]
        command = self._words("kd-plugin decode --input {text} {languages} {given}", text=text, given=given)
        name = self._translations(f"{prefix}decoded", f"translating {title}", "decode", command, True)
        if self._options["score"] is not None:
            command = ["kd-plugin", "score", name, *self._options["score"]]
            name = self._translations(f"{prefix}scored", f"scores of {title}", "score", command, True)
        if self._options["select"] is not None:
            options = list(self._options["select"])
            if SELECTED_BY in options:  # other text has none
                at = options.index(SELECTED_BY)
                options[at : at + 1] = [SELECTED_BY, "--reference", *reference] if reference else ["score"]
            command = ["kd-plugin", "select", name, *options]
            name = self._translations(f"{prefix}selected", f"choice among those of {title}", "select", command)
        filtered = f"{prefix}filtered"
        command = ["kd-plugin", "filter", name, *(self._options["filter"] or []), "--text", f"{filtered}/pseudo"]
        self._translations(filtered, f"filter of {title}", "filter", command)
        return f"{filtered}/pseudo"

    def _translations(self, name: str, what: str, section: str, command: Words, resumes: bool = False) -> str:
        self._add(name, what, section, [[*command, "--output", name]], workers=True, resumes=resumes)
        return name

    def _segmented(self, verb: str) -> Words:
        """The subword model, unless the teacher has its own."""
        folder = self._pipeline.teacher is not None and os.path.isdir(self._pipeline.teacher)
        given = any("sentencepiece-model" in word for word in self._options[verb] or ())
        return [] if folder or given or not self._teacher else self._words("--sentencepiece-model {spm}")

    def _cache(self, name: str, data: str, parts: int) -> None:
        subsets = ",".join(["train", *(f"train{part}" for part in range(1, parts)), "valid"])
        text = (
            "kd-plugin cache {data} --teacher-path {teacher} --cache-dir {name} --subset {subsets} {languages} {more}"
        )
        more = self._options["cache"] or ["--k", "16"]
        command = self._words(text, data=data, name=name, subsets=subsets, more=more)
        self._add(name, "the teacher's answers", "cache", [command], workers=True, resumes=True)
