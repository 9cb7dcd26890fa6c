"""hydra without what it does anew for each command, which takes more than half of a short training's time.

fairseq gives hydra each of its 300 flags as text, nearly all with their defaults, and a model's often not at all. The
configurations stay what they are: texts are parsed once, the same texts are composed once, the store of configurations,
which nobody changes in a copy, is not copied, and hydra learns who called it without the lines of source around each
call, which it does not look at.
"""

import copy
import functools
import inspect
import os
import sys
import types
from typing import List


def install(composed_again: bool = False) -> None:
    """For this process and its forks. Other versions of hydra than fairseq's on Python 3.11 are left as they are.

    So is each with KD_TEST_COLD=1.

    Args:
        composed_again: whether this process composes many configurations, some of them from the same texts
    """
    if os.environ.get("KD_TEST_COLD"):
        return
    try:
        import hydra
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
    if composed_again:
        _compose_once(hydra, ConfigStore)
    utils.inspect = types.SimpleNamespace(**{**vars(inspect), "stack": _stack, "__wrapped__": inspect})


def _compose_once(hydra: types.ModuleType, store: type) -> None:
    """What hydra.compose makes of the same texts, as long as nothing is added to its store."""
    compose, add, composed = hydra.compose, store.store, {}

    @functools.wraps(compose)
    def compose_once(config_name=None, overrides=(), **flags):
        key = (config_name, *overrides, *sorted(flags.items()))
        if key not in composed:
            composed[key] = compose(config_name, list(overrides), **flags)
        return copy.deepcopy(composed[key])

    @functools.wraps(add)
    def add_anew(*args, **kwargs):
        composed.clear()
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
