"""Opens the teachers of a routing file."""

from dataclasses import dataclass, field
from typing import Any, Dict, Hashable, List, Optional, Sequence

import torch

from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.checkpoints.tokenizer import Languages
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.member import Member
from kd_plugin.teachers.opening import open_teacher
from kd_plugin.teachers.routing.batches import Sides
from kd_plugin.teachers.routing.file import KEEP, STRIP, Route, Routing, read_routing
from kd_plugin.teachers.routing.teacher import Data, Expert, RoutedTeacher
from kd_plugin.teachers.routing.ways import Pair, Way, ways_of_pairs, ways_of_tags

INSTEAD = {  # flags whose place is in the file, and their defaults
    "teacher_path": None,
    "teacher_cache": None,
    "teacher_weights": None,
    "teacher_overrides": "{}",
    "teacher_sha256": None,
    "teacher_source_lang": None,
    "teacher_target_lang": None,
}


@dataclass
class RoutingFlags:
    teacher_routing: Optional[str] = field(
        default=None,
        metadata={
            "help": "YAML file that names a teacher for each language pair or language tag of a multilingual student; "
            "sentences of other languages keep their cross-entropy. Replaces --teacher-path"
        },
    )


def files_of(cfg: Any) -> List[str]:
    """The paths of all teachers that the file names."""
    return [path for route in read_routing(cfg.teacher_routing).routes for path in split_model_paths(route.path)]


def open_routed(task: Any, cfg: Any) -> RoutedTeacher:
    """The teachers of --teacher-routing, for the student's task.

    Raises:
        KDPluginError: something is wrong with the file, a language or a teacher
    """
    for name, default in INSTEAD.items():
        if str(getattr(cfg, name)) != str(default):
            raise KDPluginError(
                f"--{name.replace('_', '-')} excludes --teacher-routing. Remedy: leave one of them out; the file may "
                "say `path`, `weights`, `sha256`, `overrides`, `source_lang` and `target_lang` of each teacher"
            )
    routing = read_routing(cfg.teacher_routing)
    dictionaries = [task.source_dictionary, task.target_dictionary]
    pairs: Sequence[Pair] = task.language_pairs()
    of_pair, ways, tags = {}, [], []
    if pairs:
        of_pair = ways_of_pairs(routing, pairs)
    else:
        tagged = dictionaries[1 if routing.side == "target" else 0]
        ways = ways_of_tags(routing, tagged)
        tags = [torch.tensor([tagged.index(token) for token in way.name.split(" ")]) for way in ways]
    unsaid = {*task.language_tokens(), *(token for way in ways for token in (*way.tags.source, *way.tags.target))}
    opened: Dict[Hashable, Any] = {}
    experts = []
    for number, route in enumerate(routing.routes):
        its_pairs = [pair for pair, way in of_pair.items() if way.route == number]
        its_ways = [way for way in (*ways, *of_pair.values()) if way.route == number]
        languages = [its_pairs[0].source, its_pairs[0].target] if its_pairs else None
        experts.append(_expert(task, cfg, routing, route, its_ways, languages, sorted(unsaid), opened))
    sides = Sides(
        [dictionary.pad() for dictionary in dictionaries],
        [dictionary.eos() for dictionary in dictionaries],
        [bool(cfg.left_pad_source), bool(cfg.left_pad_target)],
    )
    data = Data(sides, len(dictionaries[1]), routing.side, tags)
    return RoutedTeacher(experts, ways, of_pair, data, routing.switch_off)


def _expert(
    task: Any,
    cfg: Any,
    routing: Routing,
    route: Route,
    ways: Sequence[Way],
    languages: Optional[Sequence[str]],
    unsaid: Sequence[str],
    opened: Dict[Hashable, Any],
) -> Expert:
    sides = [
        {token for way in ways for token in way.tags.source},
        {token for way in ways for token in way.tags.target},
    ]
    try:
        teacher = open_teacher(
            task,
            route.path,
            route.weights,
            route.overrides,
            route.sha256,
            str(cfg.teacher_dtype),
            opened,
            Languages(route.source_lang, route.target_lang),
            route.missing_symbols or str(cfg.teacher_missing_symbols),
            route.user_dir or cfg.teacher_user_dir,
            between=languages,
            unsaid=unsaid,
        )
    except KDPluginError as error:
        raise KDPluginError(f"--teacher-routing {routing.path}, `{route.name}`: {error}") from error
    unknown = sorted({token for member in teacher.members for token in _lacking(task, member, sides)})
    if route.tags == KEEP and unknown:
        raise KDPluginError(
            f"--teacher-routing {routing.path}, `{route.name}`: `tags: keep`, but {route.path} does not know "
            f"{unknown[0]}. Remedy: `tags: {STRIP}`, for a teacher that has learned without language tags"
        )
    # a folder's own tags take the place of the student's
    keeps = not unknown and not (route.source_lang or route.target_lang) if route.tags is None else route.tags == KEEP
    return Expert(route.name, teacher, keeps)


def _lacking(task: Any, member: Member, sides: Sequence[Any]) -> List[str]:
    """The tags that a teacher does not know."""
    lacking = []
    for tags, symbols, dictionary in zip(
        sides, (member.source, member.target), (task.source_dictionary, task.target_dictionary)
    ):
        missing = set() if symbols.missing is None else set(symbols.missing.tolist())
        lacking += [tag for tag in tags if dictionary.index(tag) in missing]
    return lacking
