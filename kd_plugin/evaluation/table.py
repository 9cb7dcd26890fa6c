"""The tables of an evaluation: as Markdown, and as cells for other forms."""

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.evaluation.results import Evaluation
from kd_plugin.evaluation.scores import Score

BASELINE, NONE = "baseline", "–"
P_SIGNIFICANT = 0.05
LOWER_IS_BETTER = {"TER"}
WORSE = "↓"  # beside a score that is significantly worse than the baseline's

Cells = Dict[str, str]  # by the head of their column


class Best(str):
    """A cell in bold."""


class Table(NamedTuple):
    """groups: of columns, each with its cells of all rows. The first cell of a row names it."""

    name: str
    caption: str
    groups: Dict[str, List[Cells]]
    notes: Sequence[str] = ()

    def rows(self) -> List[Dict[Tuple[str, str], str]]:
        """Their cells, by group and head."""
        return [
            {(group, head): text for group, part in zip(self.groups, row) for head, text in part.items()}
            for row in zip(*self.groups.values())
        ]


def markdown(evaluation: Dict[str, Any]) -> str:
    """The tables of what evaluation.json holds: one a test set, one of speed and size, and the signatures."""
    machine, settings = evaluation["machine"], evaluation["settings"]
    parts = [
        f"# Evaluation, {evaluation['date']}",
        f"{machine['cpu']} ({machine['cores']} cores); GPU: {machine['gpu'] or 'none'}. "
        + ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
        + ". Search: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None)
        + ".",
    ]
    parts += [_scores(evaluation, test) for test in evaluation["tests"]]
    parts.append(_speed(evaluation))
    parts.append(_signatures(evaluation))
    return "\n\n".join(parts) + "\n"


def _table(title: str, head: List[str], rows: List[List[str]], notes: str = "") -> str:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, rule, *rows)]
    return "\n".join([f"## {title}", "", *lines] + (["", notes] if notes else []))


def _scores(evaluation: Dict[str, Any], test: Dict[str, Any]) -> str:
    metrics: List[str] = []
    rows, notes = [], []
    for model in evaluation["models"]:
        scores = [score for score in model["scores"] if score["test"] == test["name"]]
        metrics = metrics or [score["metric"] for score in scores]
        is_baseline = model["name"] == evaluation["baseline"]
        cells = [_cell(score, _baseline_score(evaluation, score)) for score in scores]
        rows.append([model["name"] + (f" ({BASELINE})" if is_baseline else ""), *cells])
        notes += [f"{score['metric']}: {score['note']}" for score in scores if score["note"]]
    lines = [f"{test['lines']:,} sentences. ± is half of the 95 % interval of the bootstrap."]
    if evaluation["baseline"] is not None:
        lines.append(
            f"p is that of a paired bootstrap against {evaluation['baseline']}; where p < {P_SIGNIFICANT}, better "
            f"scores are bold and worse ones have a {WORSE}."
        )
    return _table(test["name"], ["model", *metrics], rows, " ".join(lines + sorted(set(notes))))


def _baseline_score(evaluation: Dict[str, Any], score: Dict[str, Any]) -> Optional[float]:
    """The baseline's value of the same metric on the same test set."""
    models = (model for model in evaluation["models"] if model["name"] == evaluation["baseline"])
    same = (
        s for model in models for s in model["scores"] if (s["test"], s["metric"]) == (score["test"], score["metric"])
    )
    return next((found["value"] for found in same), None)


def comparison(metric: str, value: float, baseline: Optional[float], p_value: Optional[float]) -> int:
    """1: significantly better than the baseline, -1: significantly worse, 0: neither.

    Of equal values sacreBLEU's bootstrap gives the smallest p that it has.
    """
    if baseline is None or p_value is None or not p_value < P_SIGNIFICANT or value == baseline:
        return 0
    return 1 if (value < baseline) == (metric in LOWER_IS_BETTER) else -1


def _digits(metric: str) -> int:
    return 4 if metric.upper().startswith("COMET") else 1  # most of COMET's are between 0 and 1


def _cell(score: Dict[str, Any], baseline: Optional[float]) -> str:
    if score["value"] is None:
        return NONE
    digits = _digits(score["metric"])
    text = f"{score['value']:.{digits}f}"
    if score["confidence"] is not None:
        text += f" ± {score['confidence']:.{digits}f}"
    if score["p_value"] is None:
        return text
    text += f" (p = {score['p_value']:.4f})"
    sign = comparison(score["metric"], score["value"], baseline, score["p_value"])
    return f"**{text}**" if sign > 0 else f"{text} {WORSE}" if sign < 0 else text


def _speed(evaluation: Dict[str, Any]) -> str:
    head = ["model", "engine", "parameters", "MB"]
    head += ["tokens/s, CPU", "sentences/s, CPU", "tokens/s, GPU", "sentences/s, GPU"]
    rows = []
    for model in evaluation["models"]:
        parameters = model["parameters"]
        types = dict.fromkeys(speed["compute_type"] for speed in model["speed"].values() if "compute_type" in speed)
        cells = [
            model["name"],
            f"{model['engine']} ({', '.join(types)})",
            NONE if parameters is None else f"{parameters:,}",
        ]
        cells.append(f"{model['bytes'] / 1e6:.2f}")
        for device in ("cpu", "cuda"):
            speed = model["speed"][device]
            cells += [_number(speed.get("tokens_per_second")), _number(speed.get("sentences_per_second"))]
        rows.append(cells)
    threads = evaluation["settings"]["threads"]
    notes = f"CPU: {threads} thread{'s' * (threads > 1)}. Of the search alone: no start, no subwords; tokens are target"
    notes += " tokens with end of sentence. MB (10⁶ bytes): a checkpoint's weights without optimizer state;"
    notes += " a CTranslate2 model with its vocabularies."
    notes += "".join(f" {model['name']}: {model['note']}." for model in evaluation["models"] if model["note"])
    return _table("Speed and size", head, rows, notes)


def _number(value: Optional[float]) -> str:
    return "not measured" if value is None else _rate(value)


def _rate(value: Optional[float]) -> str:
    return plain(value, 0 if value is not None and value >= 100 else 1)


def _signatures(evaluation: Dict[str, Any]) -> str:
    scores = [score for model in evaluation["models"] for score in model["scores"] if score["signature"]]
    lines = dict.fromkeys(f"* {score['metric']}: `{score['signature']}`" for score in scores)
    return "\n".join(["## Signatures", "", *lines])


def plain(value: Optional[float], decimals: int) -> str:
    """With thousands separated and a true minus sign."""
    return NONE if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def in_words(metric: str) -> str:
    return metric + " (lower is better)" * (metric in LOWER_IS_BETTER)


def _names(evaluation: Evaluation) -> List[Cells]:
    return [{"model": name + f" ({BASELINE})" * (name == evaluation.baseline)} for name in evaluation.names()]


def score_table(evaluation: Evaluation, test: str) -> Table:
    """All metrics of a test set: value, confidence, difference to the baseline, p-value."""
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
            f" Difference: to {evaluation.baseline}; p: of a paired test against it; where p\u00a0<\u00a0"
            f"{P_SIGNIFICANT:g}, *\u00a0marks what is better and {WORSE}\u00a0what is worse."
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
    """Engine, parameters, bytes and speeds of each model; the speed of the baseline's too, as a factor."""
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
        "Of the weights as they are stored, without optimizer state. Speed: one pass over the test sets, on a machine "
        "that other work may have shared."
    )
    return Table("Size and speed", caption, groups, _remarks(evaluation, said))


def _speed_cells(tokens: Optional[float], sentences: Optional[float], base: Optional[float]) -> Cells:
    factor = {"× baseline": plain(tokens / base if tokens is not None else None, 2)} if base else {}
    return {"tokens/s": _rate(tokens), "sentences/s": _rate(sentences), **factor}


def _remarks(evaluation: Evaluation, said: Iterable[Tuple[str, str, str]]) -> List[str]:
    """From (what about, text, model): each remark once, with the models it is about unless that is all of them."""
    lines: Dict[Tuple[str, str], List[str]] = {}
    for about, text, name in said:
        lines.setdefault((about, text), []).append(name)
    all_of_them = len(evaluation.models)
    whose = [f" ({', '.join(names)})" if any(names) and len(names) < all_of_them else "" for names in lines.values()]
    return [f"{about}{names}: {text}" for (about, text), names in zip(lines, whose) if text]
