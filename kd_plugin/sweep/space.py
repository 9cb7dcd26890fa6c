"""The parameters of a sweep as fairseq-train knows them: types, values in the given command, arguments."""

import argparse
import contextlib
import difflib
import itertools
import os
import shlex
from typing import AbstractSet, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kd_plugin.files.yaml_text import wrong
from kd_plugin.runners.fairseq_train import inputs_in, parse
from kd_plugin.sweep.config import MOST, Range, Sweep

Value = Union[str, int, float]
Values = Dict[str, Value]

MOST_LISTED = 1000  # settings of a space that are looked through for those not tried yet


class Space(NamedTuple):
    """What varies, by flag, or by the file's own name for values that are several flags each.

    given:  the values that the command itself has, if they lie in the space
    groups: the flags that the values of such a name have, all of them
    """

    distributions: Dict[str, BaseDistribution]
    switches: List[str]
    given: Values
    groups: Dict[str, List[str]]

    def command(self, train: Sequence[str], values: Values) -> List[str]:
        """fairseq-train's arguments with other values for some flags."""
        replaced = {flag for name in values for flag in self.groups.get(name, [name])}
        return [*_without(train, replaced), *self.words(values)]

    def words(self, values: Values) -> List[str]:
        """As arguments of fairseq-train."""
        words: List[str] = []
        for flag, value in values.items():
            if flag in self.groups:
                words += shlex.split(str(value))
            elif flag in self.switches:
                words += [flag] if value == "true" else []
            else:
                # 12 digits are enough to repeat a training, and steps that were added up read as they were meant
                words += [flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
        return words


def _without(words: Sequence[str], flags: AbstractSet[str]) -> List[str]:
    """A command without some flags and their values."""
    kept: List[str] = []
    skip = False
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag in flags:
            skip = not equals
        elif skip and not flag.startswith("--"):  # a switch has no value
            skip = False
        else:
            skip = False
            kept.append(word)
    return kept


def written(value: Value) -> str:
    """As a table shows it; commands have more digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_space(sweep: Sweep) -> Space:
    """
    Raises:
        KDPluginError: fairseq-train refuses the command, does not know a flag, or would refuse a value
    """
    parser, args = parse(sweep.path, sweep.train)
    _check_validation(sweep, args)
    _check_inputs(sweep, "`train`", args)
    actions = {option: action for action in parser._actions for option in action.option_strings}
    distributions: Dict[str, BaseDistribution] = {}
    given: Values = {}
    switches = []
    groups = {name: _flags(values) for name, values in sweep.parameters.items() if not name.startswith("--")}
    for name, flags in groups.items():
        for flag in flags:
            if flag in sweep.parameters or any(flag in groups[other] for other in groups if other != name):
                raise wrong(sweep.path, f"{flag} varies in `{name}` and on its own", "one of the two")
        distributions[name] = CategoricalDistribution(sweep.parameters[name])
    for flag, values in sweep.parameters.items():
        if flag in groups:
            continue
        action = actions.get(flag)
        if action is None:
            near = difflib.get_close_matches(flag, actions, 1)
            raise wrong(
                sweep.path, f"fairseq-train has no {flag} with this command", f"{near[0]}?" if near else "a flag"
            )
        if isinstance(action, argparse._StoreTrueAction):
            if isinstance(values, Range) or sorted(values) != ["false", "true"]:
                raise wrong(sweep.path, f"{flag} is a switch", f"`{flag}: [true, false]`")
            if getattr(args, action.dest):
                raise wrong(sweep.path, f"`train` has {flag}, which could not be switched off", "leave it out there")
            switches.append(flag)
        distributions[flag] = _distribution(sweep.path, flag, action, values)
        current = _current(distributions[flag], getattr(args, action.dest, None), flag in switches)
        if current is not None:
            given[flag] = current
    # in the file's order, which tables have
    space = Space({name: distributions[name] for name in sweep.parameters}, switches, given, groups)
    _try_all(sweep, space)
    for name in groups:
        same = (value for value in sweep.parameters[name] if _arguments(sweep, space, {name: value}) == args)
        current = next(same, None)
        if current is not None:
            given[name] = current
    return space


def _flags(values: Sequence[str]) -> List[str]:
    words = [word.partition("=")[0] for value in values for word in shlex.split(value)]
    return [word for word in dict.fromkeys(words) if word.startswith("--")]


def _arguments(sweep: Sweep, space: Space, values: Values) -> argparse.Namespace:
    return parse(sweep.path, space.command(sweep.train, values))[1]


def _check_validation(sweep: Sweep, args: argparse.Namespace) -> None:
    """Trials are judged by the validation of the subset `valid`, from the first one on."""
    if args.disable_validation or args.valid_subset.partition(",")[0] != "valid":
        flag = "--disable-validation" if args.disable_validation else f"--valid-subset {args.valid_subset}"
        raise wrong(sweep.path, f"`train` has {flag}, but trials are judged on the subset valid", "leave it out")
    if args.validate_after_updates > sweep.validate:
        raise wrong(
            sweep.path,
            f"`train` has --validate-after-updates {args.validate_after_updates}, but trials are validated every "
            f"{sweep.validate} updates",
            "leave it out, or a larger `validate:`",
        )


def _check_inputs(sweep: Sweep, key: str, args: argparse.Namespace) -> None:
    for flag, path in inputs_in(args):
        if not os.path.exists(path):
            raise wrong(sweep.path, f"{key}: {flag} {path} is not found", "an existing file or folder")


def _distribution(path: str, flag: str, action: argparse.Action, values: Any) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if action.choices is not None or action.nargs not in (None, "?") or action.type is str:
        raise wrong(path, f"{flag} is no number", f"a list of values: `{flag}: [A, B]`")
    if action.type is not int:
        return FloatDistribution(values.low, values.high, log=values.log, step=values.step)
    ends = values._replace(step=values.step or 1)
    if any(number != int(number) or abs(number) >= MOST for number in ends[:3]):  # type: ignore[arg-type]
        raise wrong(path, f"{flag} takes whole numbers", "whole numbers for low, high and step")
    return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(ends.step or 1))


def _current(distribution: BaseDistribution, value: Any, is_switch: bool) -> Optional[Value]:
    """A command's own value, if it lies in the space."""
    if isinstance(distribution, CategoricalDistribution):
        if is_switch:
            return "true" if value else "false"
        text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return next((choice for choice in distribution.choices if _same(choice, text)), None)  # type: ignore[arg-type]
    if isinstance(value, (list, tuple)) and len(value) == 1:  # --lr takes a list
        value = value[0]
    if not isinstance(value, (int, float)) or not distribution._contains(float(value)):
        return None
    return value


def _same(one: str, other: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(one) == float(other)
    return one.strip("[]") == other.strip("[]")


def _try_all(sweep: Sweep, space: Space) -> None:
    """Parses a command with each listed value and each end of a range: a typo must not wait for its trial."""
    for flag, distribution in space.distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            values = list(distribution.choices)
        else:
            values = [distribution.low, distribution.high]  # type: ignore[attr-defined]
        for value in values:
            _check_inputs(sweep, "`parameters`", _arguments(sweep, space, {flag: value}))  # type: ignore[dict-item]


def suggest(trial: "optuna.Trial", space: Space) -> Values:
    """The trial's values, which the study's sampler chooses if they have not been chosen before."""
    values: Values = {}
    for flag, distribution in space.distributions.items():
        value: Any = trial._suggest(flag, distribution)
        values[flag] = value
    return values


def untried(space: Space, tried: List[Dict[str, Any]]) -> Optional[Dict[Tuple[Any, ...], Values]]:
    """The settings that have not been tried, by `key_of`, of a space with up to MOST_LISTED; None: it has more."""
    columns: List[List[Any]] = []
    settings = 1
    for distribution in space.distributions.values():
        if isinstance(distribution, CategoricalDistribution):
            columns.append(list(distribution.choices))
        elif isinstance(distribution, IntDistribution):
            columns.append(list(range(distribution.low, distribution.high + 1, distribution.step)))
        elif isinstance(distribution, FloatDistribution) and distribution.step:
            steps = round((distribution.high - distribution.low) / distribution.step)
            columns.append([distribution.low + step * distribution.step for step in range(steps + 1)])
        else:
            return None
        settings *= len(columns[-1])
        if settings > MOST_LISTED:
            return None
    known = {key_of(space, values) for values in tried}
    every = (dict(zip(space.distributions, each)) for each in itertools.product(*columns))
    return {key: values for values in every for key in [key_of(space, values)] if key not in known}


def key_of(space: Space, values: Dict[str, Any]) -> Tuple[Any, ...]:
    """What equal settings share; the sampler adds up steps in another way, which can change a float's last digits."""
    found = (values.get(flag) for flag in space.distributions)
    return tuple(round(value, 10) if isinstance(value, float) else value for value in found)
