"""What `kd-plugin evaluate` found, as its JSON file says it: read leniently, since fields come and go."""

import math
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.results import FORMAT, FORMAT_VERSION, JSON_NAME
from kd_plugin.evaluation.table import LOWER_IS_BETTER as LOWER_IS_BETTER
from kd_plugin.files.atomic import read_json

REMEDY = "Remedy: the folder or the evaluation.json of kd-plugin evaluate"


class Speed(NamedTuple):
    """Per second."""

    tokens: Optional[float]
    sentences: Optional[float]


class Score(NamedTuple):
    """interval: the confidence interval's ends; half: its half width, where only that was said."""

    test: str
    metric: str
    value: Optional[float]
    signature: str
    p_value: Optional[float]
    half: Optional[float]
    interval: Optional[Tuple[float, float]]
    note: str


class Model(NamedTuple):
    """compute: types of the weights where they are multiplied. speeds: by device, those that were measured;
    speed_notes: by device, why one was not.
    """

    name: str
    engine: str
    compute: str
    parameters: Optional[float]
    bytes: Optional[float]
    speeds: Dict[str, Speed]
    scores: List[Score]
    note: str
    speed_notes: Dict[str, str]

    def score(self, test: str, metric: str) -> Optional[Score]:
        return next((score for score in self.scores if (score.test, score.metric) == (test, metric)), None)

    def speed(self, device: str) -> Speed:
        return self.speeds.get(device, Speed(None, None))


class Evaluation(NamedTuple):
    """tests: names and numbers of lines, those of the file first, then others that a score names."""

    source: str
    date: str
    machine: Dict[str, Any]
    versions: Dict[str, Any]
    settings: Dict[str, Any]
    baseline: Optional[str]
    tests: List[Tuple[str, Optional[float]]]
    models: List[Model]

    def metrics(self, test: str) -> List[str]:
        """Those of which some model has a value on this test set, in the order of the file."""
        scores = (score for model in self.models for score in model.scores if score.test == test)
        return list(dict.fromkeys(score.metric for score in scores if score.value is not None))

    def main_metric(self, test: str) -> str:
        """That of the picture of quality against speed; "" where there is no score."""
        metrics = self.metrics(test)
        return "BLEU" if "BLEU" in metrics else (metrics or [""])[0]

    def metric_name(self, metric: str) -> str:
        return metric + " (lower is better)" * (metric in LOWER_IS_BETTER)

    def names(self) -> List[str]:
        return list(dict.fromkeys(model.name for model in self.models))

    def devices(self) -> List[str]:
        return list(dict.fromkeys(device for model in self.models for device in model.speeds))

    def baseline_score(self, test: str, metric: str) -> Optional[Score]:
        named = (model for model in self.models if model.name == self.baseline)
        return next((model.score(test, metric) for model in named), None)

    def device_name(self, device: str) -> str:
        """CPU, 1 thread; GPU."""
        if device == "cpu" and isinstance(self.settings.get("threads"), int):
            device = f"cpu_{self.settings['threads']}_thread" + "s" * (self.settings["threads"] != 1)
        first, _, rest = ("gpu" if device == "cuda" else device).partition("_")
        return first.upper() + (f", {rest.replace('_', ' ')}" if rest else "")


def number(value: Any) -> Optional[float]:
    """The value if it is a finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    return None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _table(value: Any) -> Dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _objects(path: Path, content: Dict[str, Any], field: str) -> Iterable[Dict[str, Any]]:
    items = content.get(field) or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise KDPluginError(f"{path}: {field!r} is not a list of objects. {REMEDY}, unedited")
    return items


def _score(content: Dict[str, Any]) -> Score:
    confidence, value = content.get("confidence"), number(content.get("value"))
    half, mean = number(confidence), number(content.get("mean"))
    centre = value if mean is None else mean
    if isinstance(confidence, dict):
        confidence = [confidence.get("low"), confidence.get("high")]
    elif half is not None and centre is not None:
        confidence = [centre - half, centre + half]
    ends = [number(end) for end in confidence] if isinstance(confidence, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    return Score(
        test=_text(content.get("test")),
        metric=_text(content.get("metric")),
        value=value,
        signature=_text(content.get("signature")),
        p_value=number(content.get("p_value")),
        half=half,
        interval=(low, high) if low is not None and high is not None else None,
        note=_text(content.get("note")),
    )


def _model(path: Path, content: Dict[str, Any]) -> Model:
    if not content.get("name"):
        raise KDPluginError(f"{path}: a model without a name. {REMEDY}, unedited")
    speeds, speed_notes = {}, {}
    measured = {device: _table(speed) for device, speed in _table(content.get("speed")).items()}
    for device, speed in measured.items():
        tokens, sentences = number(speed.get("tokens_per_second")), number(speed.get("sentences_per_second"))
        if tokens is not None or sentences is not None:
            speeds[device] = Speed(tokens, sentences)
        elif speed.get("note"):
            speed_notes[device] = _text(speed["note"])
    return Model(
        name=_text(content["name"]),
        engine=_text(content.get("engine")),
        compute=", ".join(dict.fromkeys(str(s["compute_type"]) for s in measured.values() if s.get("compute_type"))),
        parameters=number(content.get("parameters")),
        bytes=number(content.get("bytes")),
        speeds=speeds,
        scores=[_score(score) for score in _objects(path, content, "scores")],
        note=_text(content.get("note")),
        speed_notes=speed_notes,
    )


def read_evaluation(argument: str) -> Evaluation:
    """The evaluation in a folder or file.

    Raises:
        KDPluginError: it is not there, no such JSON, of another version, or holds no model
    """
    path = Path(argument)
    path = path / JSON_NAME if path.is_dir() else path
    content = read_json(path, REMEDY)
    if content.get("format") != FORMAT:
        raise KDPluginError(f"{path}: its format is {content.get('format')!r}, not {FORMAT!r}. {REMEDY}")
    if content.get("version") != FORMAT_VERSION:
        raise KDPluginError(
            f"{path}: version {content.get('version')!r} of the format; this kd_plugin reads {FORMAT_VERSION}. "
            "Remedy: report with the kd_plugin that evaluated, or evaluate again"
        )
    models = [_model(path, model) for model in _objects(path, content, "models")]
    if not models:
        raise KDPluginError(f"{path}: no model in it. Remedy: kd-plugin evaluate with at least one model")
    tests = {_text(test.get("name")): number(test.get("lines")) for test in _objects(path, content, "tests")}
    for score in (score for model in models for score in model.scores):
        tests.setdefault(score.test, None)
    return Evaluation(
        source=str(path),
        date=_text(content.get("date")),
        machine=_table(content.get("machine")),
        versions=_table(content.get("versions")),
        settings=_table(content.get("settings")),
        baseline=None if content.get("baseline") is None else _text(content["baseline"]),
        tests=list(tests.items()),
        models=models,
    )
