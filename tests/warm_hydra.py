"""hydra without what it does anew for each command, which takes more than half of a short training's time.

fairseq gives hydra each of its 300 flags as text, nearly all with their defaults, and a model's often not at all. The
configurations stay what they are: texts are parsed once, the same groups are composed once and then only given the
flags that differ, the store of configurations, which nobody changes in a copy, is not copied, and hydra learns who
called it without the lines of source around each call, which it does not look at.
"""

import copy
import functools
import inspect
import os
import re
import sys
import types
from typing import Any, Dict, List, Tuple

_A_FLAG = re.compile(r"\w+(\.\w+)+$")  # dataset.max_tokens; criterion names a group, +a adds and ~a removes something
_composed: Dict[Tuple[Any, ...], Tuple[Any, Dict[str, str]]] = {}
_ends_soon = False


def install() -> None:
    """For this process and its forks. Other versions of hydra than fairseq's on Python 3.11 are left as they are.

    So is each with KD_TEST_COLD=1.
    """
    if os.environ.get("KD_TEST_COLD"):
        return
    try:
        import hydra
        import omegaconf
        from hydra._internal import utils
        from hydra.core.config_store import ConfigStore
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.core.override_parser.types import Override
    except ImportError:
        return
    parse = OverridesParser.parse_rule
    if not hasattr(OverridesParser, "create") or hasattr(parse, "__wrapped__"):
        return

    @functools.lru_cache(maxsize=None)
    def parsed(text: str) -> Override:
        return parse(OverridesParser.create(), text, "override")

    @functools.wraps(parse)
    def parse_once(self, s: str, rule_name: str):
        # a copy, because whoever parses it tells it who loads configurations
        return copy.copy(parsed(s)) if rule_name == "override" else parse(self, s, rule_name)

    OverridesParser.parse_rule = parse_once
    ConfigStore.__deepcopy__ = lambda store, memo: store
    if hasattr(hydra, "compose"):  # not in hydra 1.0, which fairseq 0.12.2 wants
        _compose_once(hydra, ConfigStore, omegaconf)
    utils.inspect = types.SimpleNamespace(**{**vars(inspect), "stack": _stack, "__wrapped__": inspect})


def expect_one_composition() -> None:
    """For a process that composes once, as most commands do: what is there already is handed out, not copied."""
    global _ends_soon
    _ends_soon = True


def _compose_once(hydra: types.ModuleType, store: type, omegaconf: types.ModuleType) -> None:
    """hydra.compose, from what it made of the same groups and flags before, as long as nothing is added to its store.

    hydra applies the values of single flags after all else, so those that differ can be applied to a copy.
    """
    compose, add = hydra.compose, store.store

    @functools.wraps(compose)
    def compose_once(config_name=None, overrides=(), **flags):
        values, groups = {}, []
        for text in overrides:
            name = text.partition("=")[0]
            if _A_FLAG.match(name):
                values[name] = text
            else:
                groups.append(text)
        key = (config_name, *groups, "", *values, "", *sorted(flags.items()))
        if key not in _composed:
            configuration = compose(config_name, list(overrides), **flags)
            if _ends_soon:
                return configuration
            _composed[key] = (configuration, values)
        base, earlier = _composed.pop(key) if _ends_soon else copy.deepcopy(_composed[key])
        parse = hydra.core.override_parser.overrides_parser.OverridesParser.create().parse_rule
        for name, text in values.items():
            if text == earlier[name]:
                continue
            try:
                value = parse(text, "override").value()
                if any(isinstance(one, dict) for one in (value, parse(earlier[name], "override").value())):
                    raise TypeError("hydra merges those")
                omegaconf.OmegaConf.update(base, name, value, merge=True)
            except (TypeError, omegaconf.errors.OmegaConfBaseException):  # hydra says what is wrong
                return compose(config_name, list(overrides), **flags)
        return base

    @functools.wraps(add)
    def add_anew(*args, **kwargs):
        _composed.clear()
        return add(*args, **kwargs)

    hydra.compose, store.store = compose_once, add_anew


def _stack() -> List[inspect.FrameInfo]:
    """As inspect.stack has it, without source."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        frame = frame.f_back
    return frames
