"""Reads evaluation.json, which `kd-plugin evaluate` writes; leniently, since fields come and go."""

import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar, get_type_hints

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.scores import Score
from kd_plugin.files.atomic import read_json

JSON_NAME = "evaluation.json"
FORMAT, FORMAT_VERSION = "kd_plugin evaluation", 1
REMEDY = "Remedy: the folder or the evaluation.json of kd-plugin evaluate"
Object = Dict[str, Any]
Kind = TypeVar("Kind")


class Speed(NamedTuple):
    """Speed on one device. compute_type: the weights' type in products; note: why speed was not measured."""

    tokens_per_second: Optional[float] = None
    sentences_per_second: Optional[float] = None
    compute_type: str = ""
    note: str = ""


class Model(NamedTuple):
    """A model's results. scores: by test set and metric. speed: by device."""

    name: str
    engine: str
    parameters: Optional[float]
    bytes: Optional[float]
    note: str
    scores: Dict[Tuple[str, str], Score]
    speed: Dict[str, Speed]

    @property
    def compute(self) -> str:
        """The weights' types in products, on all devices."""
        return ", ".join(dict.fromkeys(speed.compute_type for speed in self.speed.values() if speed.compute_type))


class Evaluation(NamedTuple):
    """An evaluation. tests: names and numbers of lines: first the file's, then others that a score names."""

    source: str
    date: str
    machine: Object
    versions: Object
    settings: Object
    baseline: str
    tests: Dict[str, Optional[float]]
    models: List[Model]

    def names(self) -> List[str]:
        return [model.name for model in self.models]

    def metrics(self) -> Dict[str, List[str]]:
        """The metrics for which some model has a value, by test set, in the order of the file."""
        found: Dict[str, List[str]] = {}
        for test in self.tests:
            scores = [(key, score) for model in self.models for key, score in model.scores.items() if key[0] == test]
            metrics = dict.fromkeys(score.metric for key, score in scores if score.value is not None)
            found.update({test: list(metrics)} if metrics else {})
        return found

    def scores(self, test: str, metric: str) -> List[Score]:
        """Each model's score."""
        return [model.scores.get((test, metric), Score(metric, None)) for model in self.models]

    def devices(self) -> List[str]:
        """The devices with a measured speed."""
        speeds = [(device, speed) for model in self.models for device, speed in model.speed.items()]
        return list(dict.fromkeys(device for device, speed in speeds if speed[:2] != (None, None)))

    def speeds(self, device: str) -> List[Speed]:
        """Each model's speed."""
        return [model.speed.get(device, Speed()) for model in self.models]

    def of_baseline(self, values: Sequence[Kind]) -> Optional[Kind]:
        """The baseline's value among one value per model."""
        return next((value for model, value in zip(self.models, values) if model.name == self.baseline), None)

    def device_name(self, device: str) -> str:
        """The device's name for display: "CPU, 1 thread" or "GPU"."""
        threads = self.settings.get("threads")
        if device == "cpu" and isinstance(threads, int):
            device = f"cpu_{threads}_thread" + "s" * (threads != 1)
        first, _, rest = ("gpu" if device == "cuda" else device).partition("_")
        return first.upper() + (f", {rest.replace('_', ' ')}" if rest else "")


def _number(value: Any) -> Optional[float]:
    """The value if it is a finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    return None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _object(value: Any) -> Object:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


AS = {str: _text, Optional[float]: _number, Object: _object}


def _fields(kind: Type[Kind], content: Object, **known: Any) -> Kind:
    """A `kind` with its other fields read from JSON; a field of the wrong type counts as missing."""
    fields = {name: AS[hint](content.get(name)) for name, hint in get_type_hints(kind).items() if name not in known}
    return kind(**fields, **known)


def _objects(path: Path, content: Object, field: str) -> List[Object]:
    items = content.get(field) or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise KDPluginError(f"{path}: {field!r} is not a list of objects. {REMEDY}, unedited")
    return items


def _model(path: Path, content: Object) -> Model:
    if not content.get("name"):
        raise KDPluginError(f"{path}: a model without a name. {REMEDY}, unedited")
    scores = [(_text(score.get("test")), _fields(Score, score)) for score in _objects(path, content, "scores")]
    speeds = {device: _fields(Speed, _object(speed)) for device, speed in _object(content.get("speed")).items()}
    return _fields(Model, content, scores={(test, score.metric): score for test, score in scores}, speed=speeds)


def read_evaluation(argument: str) -> Evaluation:
    """The evaluation in a folder or file.

    Raises:
        KDPluginError: it is missing, not an evaluation, of another version, or contains no model
    """
    path = Path(argument)
    path = path / JSON_NAME if path.is_dir() else path
    content = read_json(path, REMEDY)
    if content.get("format") != FORMAT:
        raise KDPluginError(f"{path}: its format is {content.get('format')!r}, not {FORMAT!r}. {REMEDY}")
    if content.get("version") != FORMAT_VERSION:
        raise KDPluginError(
            f"{path}: version {content.get('version')!r} of the format; this kd_plugin reads {FORMAT_VERSION}. "
            "Remedy: report with the kd_plugin that wrote it, or evaluate again"
        )
    return evaluation_of(content, path)


def evaluation_of(content: Object, path: Path = Path(JSON_NAME)) -> Evaluation:
    """The evaluation from the content of evaluation.json. path: for errors"""
    models = [_model(path, model) for model in _objects(path, content, "models")]
    if not models:
        raise KDPluginError(f"{path}: contains no model. Remedy: kd-plugin evaluate with at least one model")
    tests = {_text(test.get("name")): _number(test.get("lines")) for test in _objects(path, content, "tests")}
    for test, _ in (key for model in models for key in model.scores):
        tests.setdefault(test, None)
    return _fields(Evaluation, content, source=str(path), tests=tests, models=models)
