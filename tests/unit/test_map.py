"""CONTRIBUTING's map of the house names every room, and nothing that is not there."""

import re

from tests.support import ROOT

PACKAGE = ROOT / "kd_plugin"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_room_is_on_the_map():
    section = TEXT[TEXT.index("## Where things are") : TEXT.index("### Where would you look?")]
    named = set(re.findall(r"`([a-z_/]+)/`", section))
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
    assert rooms <= named
    assert all((PACKAGE / room).is_dir() or (ROOT / room).is_dir() for room in named)
    for room, first in re.findall(r"^\| `([a-z_/]+)/`[^|]*\|[^|]*\| `([a-z_]+\.py)` \|$", section, re.MULTILINE):
        assert list(PACKAGE.rglob(f"{room}/{first}")) or list(PACKAGE.rglob(first)), (room, first)


def test_answers_to_newcomers_are_where_they_are_said_to_be():
    section = TEXT[TEXT.index("### Where would you look?") : TEXT.index("## Add a divergence")]
    answers = re.findall(r"`([a-z_/]+\.py)`", section)
    assert len(answers) == 20 and all((PACKAGE / answer).is_file() for answer in answers)
