"""The tables of an evaluation, as Markdown and as cells for other formats."""

from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.evaluation.results import Evaluation
from kd_plugin.evaluation.scores import Score

BASELINE, NONE = "baseline", "–"
P_SIGNIFICANT = 0.05
LOWER_IS_BETTER = {"TER", "ECE"}
WORSE = "↓"  # marks a score that is significantly worse than the baseline's

Cells = Dict[str, str]  # by column heading


class Best(str):
    """A cell in bold."""


class Table(NamedTuple):
    """A table. groups: groups of columns, each with the cells of all rows. The first cell of a row names it."""

    name: str
    caption: str
    groups: Dict[str, List[Cells]]
    notes: Sequence[str] = ()

    def rows(self) -> List[Dict[Tuple[str, str], str]]:
        """The cells of each row, by group and heading."""
        return [
            {(group, head): text for group, part in zip(self.groups, row) for head, text in part.items()}
            for row in zip(*self.groups.values())
        ]


def markdown(evaluation: Evaluation) -> str:
    """An evaluation's tables: one per test set, one for speed and size, and the signatures."""
    machine = evaluation.machine
    settings = {name.replace("_", " "): value for name, value in evaluation.settings.items() if value is not None}
    parts = [
        f"# Evaluation, {evaluation.date}",
        f"{machine['cpu']} ({machine['cores']} cores); GPU: {machine['gpu'] or 'none'}. "
        + ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
        + (". Settings: " if "task" in settings else ". Search: ")
        + ", ".join(f"{name} {value}" for name, value in settings.items())
        + ".",
    ]
    parts += [_scores(evaluation, test) for test in evaluation.tests]
    parts.append(_speed(evaluation))
    scores = [score for model in evaluation.models for score in model.scores.values() if score.signature]
    signatures = dict.fromkeys(f"* {score.metric}: `{score.signature}`" for score in scores)
    parts.append("\n".join(["## Signatures", "", *signatures]))
    return "\n\n".join(parts) + "\n"


def _markdown_table(title: str, columns: Dict[str, Sequence[str]], notes: str) -> str:
    rule = ["---"] + ["--:"] * (len(columns) - 1)
    rows = [list(columns), rule, *zip(*columns.values())]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {title}", "", *lines, "", notes])


def _scores(evaluation: Evaluation, test: str) -> str:
    metrics = dict.fromkeys(metric for model in evaluation.models for of, metric in model.scores if of == test)
    columns: Dict[str, Sequence[str]] = {"model": [names["model"] for names in _names(evaluation)]}
    notes = [f"{evaluation.tests[test] or 0:,.0f} sentences. ± is half of the 95 % interval of the bootstrap."]
    if evaluation.baseline:
        notes.append(
            f"p comes from a paired bootstrap against {evaluation.baseline}; for p < {P_SIGNIFICANT}, better "
            f"scores are bold and worse ones have a {WORSE}."
        )
    said = set()
    for metric in metrics:
        scores = evaluation.scores(test, metric)
        base = evaluation.of_baseline([score.value for score in scores])
        columns[metric] = [_cell(score, base) for score in scores]
        said |= {f"{metric}: {score.note}" for score in scores if score.note}
    return _markdown_table(test, columns, " ".join([*notes, *sorted(said)]))


def comparison(metric: str, value: float, baseline: Optional[float], p_value: Optional[float]) -> int:
    """1: significantly better than the baseline, -1: significantly worse, 0: neither.

    Equal values count as neither, since sacreBLEU's bootstrap gives them its smallest p.
    """
    if baseline is None or p_value is None or not p_value < P_SIGNIFICANT or value == baseline:
        return 0
    return 1 if (value < baseline) == (metric in LOWER_IS_BETTER) else -1


def _digits(metric: str) -> int:
    return 4 if metric.upper().startswith("COMET") else 1  # COMET scores are mostly between 0 and 1


def _cell(score: Score, baseline: Optional[float]) -> str:
    if score.value is None:
        return NONE
    digits = _digits(score.metric)
    text = f"{score.value:.{digits}f}"
    if score.confidence is not None:
        text += f" ± {score.confidence:.{digits}f}"
    if score.p_value is None:
        return text
    text += f" (p = {score.p_value:.4f})"
    sign = comparison(score.metric, score.value, baseline, score.p_value)
    return f"**{text}**" if sign > 0 else f"{text} {WORSE}" if sign < 0 else text


def _speed(evaluation: Evaluation) -> str:
    models, threads = evaluation.models, evaluation.settings["threads"]
    columns: Dict[str, Sequence[str]] = {
        "model": evaluation.names(),
        "engine": [f"{model.engine} ({model.compute})" for model in models],
        "parameters": [plain(model.parameters, 0) for model in models],
        "MB": [f"{(model.bytes or 0) / 1e6:.2f}" for model in models],
    }
    translates = "task" not in evaluation.settings  # classifiers run on the CPU only
    for device, name in (("cpu", "CPU"), ("cuda", "GPU"))[: 1 + translates]:
        speeds = evaluation.speeds(device)
        columns[f"tokens/s, {name}"] = [_number(speed.tokens_per_second) for speed in speeds]
        columns[f"sentences/s, {name}"] = [_number(speed.sentences_per_second) for speed in speeds]
    what = (
        "Speed of the model alone, without startup and subwords; tokens are words of the text. MB (10⁶ bytes): a "
        "checkpoint's weights without optimizer state; the other kinds' weight files."
        if not translates
        else "Speed of the search alone, without startup and subwords; tokens are target tokens with end of sentence. "
        "MB (10⁶ bytes): a checkpoint's weights without optimizer state; a CTranslate2 model with its vocabularies."
    )
    remarks = "".join(f" {model.name}: {model.note}." for model in models if model.note)
    notes = f"CPU: {threads} thread{'s' * (threads > 1)}. {what}{remarks}"
    return _markdown_table("Speed and size", columns, notes)


def _number(value: Optional[float]) -> str:
    return "not measured" if value is None else _rate(value)


def _rate(value: Optional[float]) -> str:
    return plain(value, 0 if value is not None and value >= 100 else 1)


def plain(value: Optional[float], decimals: int) -> str:
    """The number with thousands separators and a true minus sign."""
    return NONE if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def in_words(metric: str) -> str:
    return metric + " (lower is better)" * (metric in LOWER_IS_BETTER)


def _names(evaluation: Evaluation) -> List[Cells]:
    return [{"model": name + f" ({BASELINE})" * (name == evaluation.baseline)} for name in evaluation.names()]


def score_table(evaluation: Evaluation, test: str) -> Table:
    """All metrics on a test set: value, confidence, difference from the baseline, p-value."""
    groups, said = {"": _names(evaluation)}, []
    for metric in evaluation.metrics()[test]:
        groups[in_words(metric)] = _score_cells(evaluation, metric, evaluation.scores(test, metric))
    for model in evaluation.models:
        scores = [score for key, score in model.scores.items() if key[0] == test]
        said += [(score.metric, text, model.name) for score in scores for text in (score.signature, score.note)]
    lines = evaluation.tests[test]
    caption = f"{f'{lines:,.0f} sentences. ' if lines else ''}Bold: the best value."
    if any("p" in rows[0] for rows in groups.values()):
        caption += (
            f" Difference: from {evaluation.baseline}; p: of a paired test against it; for p\u00a0<\u00a0"
            f"{P_SIGNIFICANT:g}, *\u00a0marks better and {WORSE}\u00a0worse scores."
        )
    return Table(test, caption, groups, _remarks(evaluation, said))


def _score_cells(evaluation: Evaluation, metric: str, scores: Sequence[Score]) -> List[Cells]:
    digits = _digits(metric)
    known = [score.value for score in scores if score.value is not None]
    best = (min if metric in LOWER_IS_BETTER else max)(known) if len(known) > 1 else None
    base, rows = evaluation.of_baseline(scores) if len(scores) > 1 else None, []
    for score in scores:
        value, text = score.value, plain(score.value, digits)
        row = {"value": Best(text) if value == best else text, "± 95 %": plain(score.confidence, digits)}
        if base is not None and base.value is not None:
            row.update(difference=NONE, p=NONE)
            if value is not None and score is not base:
                text = plain(value - base.value, digits)
                sign = ("", "*", WORSE)[comparison(metric, value, base.value, score.p_value)]
                row["difference"] = "+" * (text[0] != "−") + text + sign
                row["p"] = "< 0.001" if score.p_value is not None and score.p_value < 0.001 else plain(score.p_value, 3)
        rows.append(row)
    return rows


def size_table(evaluation: Evaluation) -> Table:
    """Engine, parameters, bytes and speed of each model; speed also as a multiple of the baseline's."""
    groups, said = {"": _names(evaluation)}, []
    for row, model in zip(groups[""], evaluation.models):
        row["engine"] = model.engine + (f" ({model.compute})" if model.compute else "") or NONE
        row["parameters"] = plain(model.parameters, 0)
        row["MB"] = plain(None if model.bytes is None else model.bytes / 1e6, 2)
        said += [(evaluation.device_name(device), speed.note, model.name) for device, speed in model.speed.items()]
    for device in evaluation.devices():
        speeds = evaluation.speeds(device)
        base = evaluation.of_baseline([speed.tokens_per_second for speed in speeds])
        groups[evaluation.device_name(device)] = [_speed_cells(*speed[:2], base) for speed in speeds]
    said += [(model.name, model.note, "") for model in evaluation.models]
    caption = (
        "Size: the weights as stored, without optimizer state. Speed: one pass over the test sets, on a machine that "
        "may have been shared with other work."
    )
    return Table("Size and speed", caption, groups, _remarks(evaluation, said))


def _speed_cells(tokens: Optional[float], sentences: Optional[float], base: Optional[float]) -> Cells:
    factor = {"× baseline": plain(tokens / base if tokens is not None else None, 2)} if base else {}
    return {"tokens/s": _rate(tokens), "sentences/s": _rate(sentences), **factor}


def _remarks(evaluation: Evaluation, said: Iterable[Tuple[str, str, str]]) -> List[str]:
    """From (subject, text, model) triples: each remark once, with the models concerned unless that is all of them."""
    lines: Dict[Tuple[str, str], List[str]] = {}
    for about, text, name in said:
        lines.setdefault((about, text), []).append(name)
    all_of_them = len(evaluation.models)
    whose = [f" ({', '.join(names)})" if any(names) and len(names) < all_of_them else "" for names in lines.values()]
    return [f"{about}{names}: {text}" for (about, text), names in zip(lines, whose) if text]
