"""Which teacher a sentence goes to, and the language tags that it carries."""

import fnmatch
from typing import Dict, List, NamedTuple, Optional, Sequence, Set

from fairseq.data import Dictionary

from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.routing.file import Routing


class Tags(NamedTuple):
    """The language tags of sentences.

    source, target: tokens at the beginning of the source and of the target
    replaces: instead, one stands for the source's end of sentence, and one for that before the target, as with
        fairseq's --lang-tok-replacing-bos-eos; `source` and `target` then have at most one token each
    """

    source: Sequence[str] = ()
    target: Sequence[str] = ()
    replaces: bool = False


class Pair(NamedTuple):
    """A language pair of a multilingual task, with the tags of its sentences."""

    source: str
    target: str
    tags: Tags

    @property
    def name(self) -> str:
        """`de-en`."""
        return f"{self.source}-{self.target}"


class Way(NamedTuple):
    """A kind of sentence.

    name:  of its language, for the log: a pair or a tag
    route: the number of its teacher in the routing file; None: it has no teacher
    """

    name: str
    route: Optional[int]
    tags: Tags


def ways_of_pairs(routing: Routing, pairs: Sequence[Pair]) -> Dict[Pair, Way]:
    """The way of each pair: by its name, else by a pattern such as `*-en`, else by one of its tags.

    Raises:
        KDPluginError: a route matches no pair, or several patterns or tags match one
    """
    ways: Dict[Pair, Way] = {}
    names = [route.name for route in routing.routes] + routing.without
    used: Set[str] = set()
    for pair in pairs:
        exact = [name for name in names if name == pair.name]
        patterns = [name for name in names if "*" in name and fnmatch.fnmatchcase(pair.name, name)]
        tags = [name for name in names if name in (*pair.tags.source, *pair.tags.target)]
        found = exact or patterns or tags
        used.update(exact, patterns, tags)
        if len(found) > 1:
            raise KDPluginError(
                f"--teacher-routing {routing.path}: both `{found[0]}` and `{found[1]}` fit the pair {pair.name}. "
                f"Remedy: a line `{pair.name}: …` of its own"
            )
        number = names.index(found[0]) if found else len(names)
        ways[pair] = Way(pair.name, number if number < len(routing.routes) else None, pair.tags)
    idle = [name for name in names if name not in used]
    if idle:
        raise KDPluginError(
            f"--teacher-routing {routing.path}: `{idle[0]}` is neither a pair of --lang-pairs nor a language tag of "
            f"one. Remedy: one of {', '.join(sorted({pair.name for pair in pairs}))}"
        )
    return ways


def ways_of_tags(routing: Routing, dictionary: Dictionary) -> List[Way]:
    """The way of each name that is a tag of plain text; longer tags first, since the first match counts.

    Args:
        dictionary: the student's, of the side with the tags

    Raises:
        KDPluginError: a token of a tag is not in the dictionary
    """
    ways = []
    for number, name in enumerate([route.name for route in routing.routes] + routing.without):
        tokens = name.split(" ")
        unknown = [token for token in tokens if dictionary.indices.get(token, dictionary.unk()) == dictionary.unk()]
        if unknown:
            raise KDPluginError(
                f"--teacher-routing {routing.path}: `{unknown[0]}` is not in the student's {routing.side} dictionary. "
                f"Remedy: the tag as {routing.side} sentences have it in the binarised data, its tokens separated by "
                "spaces; language pairs (de-en) need --task distillation_translation_multi_simple_epoch"
            )
        route = number if number < len(routing.routes) else None
        ways.append(Way(name, route, Tags(target=tokens) if routing.side == "target" else Tags(tokens)))
    return sorted(ways, key=lambda way: -len(way.name.split(" ")))
