"""Reads the file of `kd-plugin sweep`: the training, what varies in it, and how much may be spent."""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from kd_plugin.files.yaml_text import check_keys, read_settings, wrong
from kd_plugin.runners.fairseq_train import train_words

EXAMPLE = "a file with `train:`, `parameters:`, `trials:` and `updates:` (see the page on sweeps)"
SEEDS = 2**31  # NumPy takes 32 bits, and fairseq adds a number to the seed
MOST = 2**53  # whole numbers and numbers of steps from here on are not exact, nor do they fit into the study's database
# flags of fairseq-train that the sweep itself gives
OWN = (
    "--save-dir --max-update --seed --validate-interval --validate-interval-updates --save-interval "
    "--save-interval-updates --keep-interval-updates --no-epoch-checkpoints --no-save --no-last-checkpoints "
    "--disable-validation --log-format --log-file --restore-file --best-checkpoint-metric "
    "--maximize-best-checkpoint-metric --stop-time-hours --no-save-optimizer-state --reset-optimizer"
).split()
KEYS = "train parameters trials updates seconds validate objective direction halving retrain seed".split()
HIGHER_IS_BETTER = ("bleu", "accuracy", "f1", "agreement", "mcc")
MINIMIZE, MAXIMIZE = "minimize", "maximize"


class Range(NamedTuple):
    """Numbers from low to high, both included. step: None for any number between; log: even in the logarithm"""

    low: float
    high: float
    step: Optional[float] = None
    log: bool = False


class Halving(NamedTuple):
    """Successive halving: at `first` updates, then `factor` times as many, …, only the best 1 / factor go on."""

    first: int
    factor: int


class Sweep(NamedTuple):
    """The file's content.

    train:      fairseq-train's arguments
    parameters: what varies, by flag: a range, or a list of values as the flag takes them
    updates:    per training; seconds: of training time instead, if updates is None
    validate:   updates from one validation to the next
    objective:  a term of the validation's line in fairseq's log
    direction:  whether less of it is better
    retrain:    how many of the best are trained again, and the seeds
    """

    path: str
    train: List[str]
    parameters: Dict[str, Any]
    trials: int
    updates: Optional[int]
    seconds: Optional[float]
    validate: int
    objective: str
    direction: str
    halving: Optional[Halving]
    retrain: Tuple[int, List[int]]
    seed: int

    def better(self, one: float, other: float) -> bool:
        return one < other if self.direction == MINIMIZE else one > other


def read_sweep(path: str) -> Sweep:
    """
    Raises:
        KDPluginError: the file cannot be read, or a key or value is none that it can have
    """
    content = read_settings(path, KEYS, ("train", "parameters", "trials"), EXAMPLE)
    if ("updates" in content) == ("seconds" in content):
        raise wrong(path, "it needs either `updates:` or `seconds:` per training", "`updates: 2000`")
    updates = _whole(path, content, "updates", 1) if "updates" in content else None
    seconds = _number(path, content, "seconds") if updates is None else None
    objective = _text(path, content, "objective", "nll_loss")
    usual = MAXIMIZE if objective in HIGHER_IS_BETTER else MINIMIZE
    direction = _text(path, content, "direction", usual)
    if direction not in (MINIMIZE, MAXIMIZE):
        raise wrong(path, f"`direction: {direction}`", f"{MINIMIZE} or {MAXIMIZE}")
    halving = _halving(path, content.get("halving"), updates)
    default = halving.first if halving else max((updates or 1000) // 10, 1)
    validate = _whole(path, content, "validate", 1, default)
    if halving and halving.first % validate:
        raise wrong(
            path, f"`first: {halving.first}` of `halving` is no multiple of `validate: {validate}`", "a multiple"
        )
    if updates is not None and validate > updates:
        raise wrong(path, f"`validate: {validate}` is more than `updates: {updates}`", "validate within the training")
    seed, retrain = _whole(path, content, "seed", 0, 1), _retrain(path, content.get("retrain", {}))
    if max(seed, *retrain[1]) >= SEEDS:
        raise wrong(path, f"a seed of {max(seed, *retrain[1])}", f"seeds below {SEEDS}")
    train = train_words(path, "train", content["train"], OWN, "the sweep")
    parameters = _parameters(path, content["parameters"])
    return Sweep(
        path,
        train,
        parameters,
        _whole(path, content, "trials", 1),
        updates,
        seconds,
        validate,
        objective,
        direction,
        halving,
        retrain,
        seed,
    )


def _text(path: str, content: Dict[str, Any], key: str, default: str) -> str:
    value = content.get(key, default)
    if not isinstance(value, str) or not value.strip() or len(value.split()) > 1:
        raise wrong(path, f"`{key}` is not one word", f"`{key}: {default}`")
    return value


def _whole(path: str, content: Dict[str, Any], key: str, least: int, default: Optional[int] = None) -> int:
    value = content.get(key, default)
    try:
        number = int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = least - 1
    if not least <= number < MOST:
        raise wrong(path, f"`{key}: {value}`", f"a whole number, {least} or more")
    return number


def _number(path: str, content: Dict[str, Any], key: str, positive: bool = True) -> float:
    value = content.get(key)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or positive and number <= 0:
        raise wrong(path, f"`{key}: {value}`", "a number above 0" if positive else "a number")
    return number


def _parameters(path: str, value: Any) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(path, "`parameters` is no mapping", "lines such as `--kd-alpha: {low: 0, high: 1}`")
    return {flag: _parameter(path, flag, item) for flag, item in value.items()}


def _parameter(path: str, flag: str, value: Any) -> Any:
    if not flag.startswith("--") and isinstance(value, list) and all(str(item).startswith("--") for item in value):
        for item in value:  # each is several flags
            train_words(path, flag, item, OWN, "the sweep")
    elif not flag.startswith("--") or "=" in flag:
        raise wrong(path, f"the parameter `{flag}` is no flag", "a flag of fairseq-train, such as --kd-alpha")
    if flag in OWN:
        raise wrong(path, f"the parameter {flag} is given by the sweep itself", "another flag")
    where = f"of {flag}"
    if isinstance(value, list):
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) < len(value) or len(set(texts)) < 2 or len(set(texts)) < len(texts):
            raise wrong(path, f"the values {where} are not two or more different ones", f"`{flag}: [1, 2]`")
        return texts
    if not isinstance(value, dict) or not {"low", "high"} <= set(value):
        raise wrong(path, f"{flag} has neither a list of values nor low and high", f"`{flag}: {{low: 0, high: 1}}`")
    check_keys(path, value, ("low", "high", "step", "log"), where)
    low, high = (_number(path, value, key, positive=False) for key in ("low", "high"))
    step = _number(path, value, "step") if "step" in value else None
    log = value.get("log", "false")
    if log not in ("true", "false"):
        raise wrong(path, f"`log: {log}` {where}", "true or false")
    if not low < high:
        raise wrong(path, f"`low: {value['low']}` {where} is not below `high: {value['high']}`", "a range")
    if log == "true" and (low <= 0 or step is not None):
        raise wrong(path, f"`log: true` {where} needs numbers above 0 and no step", "a range above 0")
    if step is not None and step > high - low:
        raise wrong(path, f"`step: {value['step']}` {where} is larger than its range", "a smaller step")
    if step is not None and (high - low) / step >= MOST:
        raise wrong(path, f"`step: {value['step']}` {where} is too small for its range", "a larger step, or none")
    return Range(low, high, step, log == "true")


def _halving(path: str, value: Any, updates: Optional[int]) -> Optional[Halving]:
    if value in (None, "false", "none"):
        return None
    if not isinstance(value, dict):
        raise wrong(path, "`halving` is no mapping", "`halving: {first: 200, factor: 3}`")
    check_keys(path, value, ("first", "factor"), "of `halving`")
    halving = Halving(_whole(path, value, "first", 1), _whole(path, value, "factor", 2, 3))
    if updates is None:
        raise wrong(path, "`halving` compares trainings at equal updates, which `seconds` does not give", "`updates:`")
    if halving.first >= updates:
        raise wrong(path, f"`first: {halving.first}` of `halving` is not below `updates: {updates}`", "a smaller one")
    return halving


def _retrain(path: str, value: Any) -> Tuple[int, List[int]]:
    if not isinstance(value, dict):
        raise wrong(path, "`retrain` is no mapping", "`retrain: {best: 2, seeds: [1, 2, 3]}`")
    check_keys(path, value, ("best", "seeds"), "of `retrain`")
    given = value.get("seeds", ["1", "2", "3"])
    seeds = [_whole(path, {"seeds": seed}, "seeds", 0) for seed in given] if isinstance(given, list) else []
    if not seeds or len(set(seeds)) < len(seeds):
        raise wrong(path, "`seeds` of `retrain` is no list of different seeds", "`seeds: [1, 2, 3]`")
    return _whole(path, value, "best", 0, 1), seeds
