"""CONTRIBUTING's map of the house names every room, and nothing that is not there."""

import ast
import re

from tests.support import ROOT

PACKAGE = ROOT / "kd_plugin"
# an arrow of imports runs from left to right, so that there is no circle; compat, errors, quiet are everybody's
HOUSE = "cli tasks criterions distill pipeline sweep report curate export initialise evaluation decoding teachers"
HOUSE = [*HOUSE.split(), "checkpoints", "models", "corpus", "runners", "cache", "losses", "files"]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_room_is_on_the_map():
    section = TEXT[TEXT.index("## Where things are") : TEXT.index("### Where would you look?")]
    named = set(re.findall(r"`([a-z_/]+)/`", section))
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
    assert rooms <= named
    assert all((PACKAGE / room).is_dir() or (ROOT / room).is_dir() for room in named)
    for room, first in re.findall(r"^\| `([a-z_/]+)/`[^|]*\|[^|]*\| `([a-z_]+\.py)` \|$", section, re.MULTILINE):
        assert list(PACKAGE.rglob(f"{room}/{first}")) or list(PACKAGE.rglob(first)), (room, first)
    order = [room.partition("/")[0] for room in re.findall(r"^\| `([a-z_/]+)/`", section, re.MULTILINE)]
    order = [HOUSE.index(room) for room in order if room in HOUSE]
    assert order == sorted(order)  # the table says that its order is the order of imports


def test_answers_to_newcomers_are_where_they_are_said_to_be():
    section = TEXT[TEXT.index("### Where would you look?") : TEXT.index("## Add a divergence")]
    answers = re.findall(r"`([a-z_/]+\.py)`", section)
    assert len(answers) > 20 and all((PACKAGE / answer).is_file() for answer in answers)
    for flag, answer in re.findall(r"^\| .*`(--[a-z-]+)` declared.*\| `([a-z_/]+\.py)` \|$", section, re.MULTILINE):
        field = flag[2:].replace("-", "_")
        assert f"    {field}: " in (PACKAGE / answer).read_text(encoding="utf-8"), (flag, answer)


def imported(path):
    """Modules of the package that a file names in its imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("kd_plugin."))


def test_rooms_import_only_what_is_below_them():
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*/__init__.py")}
    assert rooms == set(HOUSE)
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for other in set(imported(path)) & rooms if room in rooms else ():
            assert HOUSE.index(room) <= HOUSE.index(other), f"{path.relative_to(PACKAGE)} imports {other}/"


def test_rooms_without_fairseq_do_not_import_it():
    for room in ("losses", "cache", "files"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) fairseq", path.read_text(encoding="utf-8"), re.MULTILINE), path
