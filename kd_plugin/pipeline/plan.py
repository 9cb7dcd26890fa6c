"""The steps of a pipeline: those of `teaching.py`, then students, rounds, exports, and what compares them."""

from typing import Any, Dict, List, Sequence, Tuple

from kd_plugin.files.yaml_text import wrong
from kd_plugin.pipeline.checkpoints import value_of
from kd_plugin.pipeline.schema import CACHE, NONE, ONLINE, Pipeline, Student, Training, Words
from kd_plugin.pipeline.teaching import PLAIN, Model, Step, Teaching

REPORT = "report.html"
# what distill keeps beside the steps' products (`all`: Snakemake's name for all of them)
RESERVED = ("plan.json", "distill.yaml", "done", "logs", "times", "snakemake", "all")
SHAPE = "{shape:init/student.init.json}"  # fairseq-train's flags for a student that `init` made, known after it
DISTILLED = "--task distillation_translation {teaches} {path} --criterion kd_label_smoothed_cross_entropy"


def steps_of(pipeline: Pipeline) -> List[Step]:
    """
    Raises:
        KDPluginError: a student's or an export's name is that of another step, or of a file that distill keeps; or the
            baseline is no model
    """
    steps = _Plan(pipeline).steps
    taken = set(RESERVED)
    for step in steps:
        names = {step.name.lower(), step.product.lower()}
        if names & taken:
            what = f"`{step.name}` would be the name of two things in the output folder"
            raise wrong(place_of(pipeline, "students"), what, "another student's name")
        taken |= names
    return steps


def place_of(pipeline: Pipeline, section: str) -> str:
    """The file, and the line of a section that it has."""
    lines = getattr(pipeline.content, "lines", {})
    return pipeline.path + (f", line {lines[section]}" if section in lines else "")


class _Plan(Teaching):
    def __init__(self, pipeline: Pipeline):
        super().__init__(pipeline)
        self._train()

    def _train(self) -> None:
        """Students, their rounds, exports, and what compares them."""
        students = [(student, seed) for student in self._pipeline.students for seed in student.seeds]
        alone = sum(student.teacher != NONE for student, _ in students) == 1
        trained: List[Model] = []
        deployed: List[Tuple[str, Model]] = []
        for student, seed in students:
            name = student.name if len(student.seeds) == 1 else f"{student.name}-seed{seed}"
            data = self._original if student.original else self._mixed
            start = self._words("--finetune-from-model init/student.pt") if student.init == "true" else []
            objective = [*self._objective(student.teacher, "cache"), "--upsample-primary", "1"]
            model = self._training(name, f"student {name}", data, seed, objective, _more(student, *start))
            trained.append(model)
            for number in range(1, (self._pipeline.rounds if student.teacher != NONE else 0) + 1):
                model = self._round("" if alone else f"{name}-", number, model, student, seed)
                trained.append(model)
            if not student.original and seed == student.seeds[0]:
                deployed.append((name, model))
        exported = [each for name, model in deployed for each in self._exports(name, model)]
        if self._options["evaluate"] is not None:
            self._evaluate([*trained, *exported])
            gaps = [word for name, model in deployed for word in self._gap(name, model)]
            self._report(gaps)

    def _objective(self, teacher: str, cache: str) -> Words:
        if teacher == NONE:
            return self._words(PLAIN)
        if teacher == ONLINE:
            return self._words(DISTILLED, teaches="--teacher-path", path=self._teacher)
        return self._words(DISTILLED, teaches="--teacher-cache", path=cache)

    def _round(self, prefix: str, number: int, best: Model, student: Student, seed: int) -> Model:
        """The student translates the training text, and learns from the teacher's answers about its own words."""
        title = f"round {number} of {student.name}"
        own, data, cache, name = (f"{prefix}{kind}{number}" for kind in ("rollouts", "own", "cache", "round"))
        options = self._options["decode"] or []
        engine = options[options.index("--engine") :][:2] if "--engine" in options else []
        text = (
            "kd-plugin decode --input {train}.{src} --path {model} {languages} --dict-dir {vocabulary} "
            "--sentencepiece-model {spm} {engine} --beam 1 --nbest 1 --text {own}/own"
        )
        command = self._words(text, model=best.path, own=own, engine=engine)
        self._translations(own, f"{title}: its translations", "rounds", command, True)
        vocabulary = self._words("--vocabulary {vocabulary}")
        self._data(data, f"{title}: they become training data", "rounds", [f"{own}/own"], vocabulary)
        self._cache(cache, f"{data}/data-bin", 1)
        start = ["--kd-alpha", "0", "--finetune-from-model", best.path]
        training = _more(student, *self._pipeline.round_words, *start)
        return self._training(name, title, f"{data}/data-bin", seed, self._objective(CACHE, cache), training)

    def _exports(self, run: str, model: Model) -> List[Model]:
        """Those that can translate."""
        text = (
            "kd-plugin export {path} --output {folder} --sentencepiece-model {spm} --dict-dir {vocabulary} {languages} "
            "{check} {options}"
        )
        made = []
        for name, options in self._pipeline.exports.items():
            folder, translates = f"{run}-{name}", "ctranslate2" in options
            check = self._words("--check {valid}.{src}") if translates and "--check" not in options else []
            command = self._words(text, path=model.path, folder=folder, check=check, options=options)
            self._add(folder, f"export of {run}: {name}", "export", [command])
            made += [Model(folder, folder)] if translates else []
        return made

    def _evaluate(self, models: List[Model]) -> None:
        options = self._options["evaluate"] or []
        models = [Model("teacher", self._teacher), *models] if self._teacher else models
        names = [model.name for model in models]
        baseline = value_of(options, "--baseline")
        if baseline and baseline not in names:
            what = f"`baseline: {baseline}` of `evaluate` is no model"
            raise wrong(place_of(self._pipeline, "evaluate"), what, f"one of {', '.join(names)}")
        words = [word for model in models for word in ("--model", f"{model.name}={model.path}")]
        for name, prefix in self._corpus.tests.items():
            words += self._words("--test {name}={prefix}.{src},{prefix}.{tgt}", name=name, prefix=prefix)
        words += ["--baseline", "teacher"] if self._teacher and not baseline else []
        text = "kd-plugin evaluate {words} {languages} --sentencepiece-model {spm} --dict-dir {vocabulary} {options}"
        command = [*self._words(text, words=words, options=options), "--output", "evaluation"]
        self._add("evaluation", "scores, significance, speed", "evaluate", [command])

    def _gap(self, run: str, model: Model) -> Words:
        """On the first test set. Its arguments of the report."""
        options = self._options["gap"]
        if options is None or not self._teacher:
            return []
        name, prefix = next(iter(self._corpus.tests.items()))
        text = (
            "kd-plugin gap --test {prefix}.{src},{prefix}.{tgt} "
            "--teacher teacher=evaluation/translations/teacher/{name}.txt "
            "--student {one}=evaluation/translations/{one}/{name}.txt {languages} --output {folder} {options}"
        )
        given = {"name": name, "prefix": prefix, "one": model.name, "folder": f"gap-{run}", "options": options}
        self._add(f"gap-{run}", f"where {run} lags the teacher", "gap", [self._words(text, **given)])
        return ["--gap", f"gap-{run}"]

    def _report(self, gaps: Words) -> None:
        options = self._options["report"]
        if options is None:
            return
        logs = [word for step in self.steps if step.training for word in ("--log", f"{step.name}=logs/{step.name}.log")]
        title = [] if "--title" in options else self._words("--title {src}-{tgt}")
        text = "kd-plugin report --evaluation evaluation {gaps} {logs} --times times {title} {options}"
        command = self._words(text, gaps=gaps, logs=logs, title=title, options=options)
        self._add("report", "report", "report", [[*command, "--output", REPORT]], product=REPORT)


def _more(student: Student, *words: str) -> Training:
    """The student's training with further words, in the shape of `init` if it has that."""
    shape = [] if student.init == "false" else [SHAPE]
    return student.training._replace(words=[*student.training.words, *shape, *words])


def as_json(steps: Sequence[Step], threads: int, workers: int) -> Dict[str, Any]:
    """What the Snakefile and the steps read."""
    table = {step.name: step._asdict() for step in steps}
    return {"format": "kd_plugin distill", "version": 1, "threads": threads, "workers": workers, "steps": table}
