#!/usr/bin/env python3
"""Mutation testing: changes one thing at a time in a copy of the plugin and runs the unit tests on it.

    python scripts/mutate.py --count 68 --seed 1

A mutant that no test notices is printed with its place and what was changed: either a test is missing, or the change
makes no difference (then say so where you quote the score). It takes minutes to hours; scripts/test.sh leaves it out.
Needs Python >= 3.9 and the plugin's tests' requirements; runs on Linux and macOS.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent

# the unit tests to run first for a file; the first matching pattern counts
TESTS: Dict[str, Sequence[str]] = {
    "kd_plugin/losses/sparse.py": ("test_sparse", "test_gaps_and_masks", "test_losses", "test_cache", "test_criterion"),
    "kd_plugin/losses/selection.py": ("test_selection", "test_criterion"),
    "kd_plugin/losses/schedules.py": ("test_schedules", "test_criterion"),
    "kd_plugin/losses/": ("test_engine", "test_losses", "test_sparse", "test_gaps_and_masks", "test_criterion"),
    "kd_plugin/criterions/": ("test_criterion", "test_criterion_logs", "test_task", "test_packed"),
    "kd_plugin/tasks/": ("test_task", "test_criterion", "test_teachers"),
    "kd_plugin/teachers/cached.py": ("test_task", "test_cache"),
    "kd_plugin/teachers/": ("test_teachers", "test_task", "test_packed", "test_criterion"),
    "kd_plugin/cache/": ("test_cache", "test_task"),
}
# the modules with a published score
DEFAULT = (
    *(f"kd_plugin/losses/{name}.py" for name in ("answer", "selection", "sparse", "schedules")),
    "kd_plugin/losses/engine/dispatch.py",
    "kd_plugin/losses/engine/one_pass.py",
    "kd_plugin/losses/engine/one_chunk.py",
    "kd_plugin/criterions/kd_label_smoothed_cross_entropy.py",
    "kd_plugin/tasks/distillation_translation.py",
    "kd_plugin/teachers",
    "kd_plugin/cache",
)
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip
# calls that only produce messages or have no effect on results
SPOKEN = ("warning", "info", "debug", "KDPluginError", "field", "register_task", "register_criterion")


class Mutant(NamedTuple):
    path: str
    line: int
    what: str
    source: str  # of the whole file


class Killed(NamedTuple):
    killed: bool
    seconds: float
    why: str


def points(node: ast.AST, silent: bool = False) -> Iterator[Tuple[ast.AST, str]]:
    """Each possible (node, kind of change) below a node."""
    if isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return
    if isinstance(node, ast.Call) and _name(node.func) in SPOKEN:
        return
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        yield node, "compare"
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _text(node):
        yield node, "arithmetic"
    if isinstance(node, ast.BoolOp):
        yield node, "and-or"
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield node, "negate"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        yield node, "constant"
    if isinstance(node, ast.Call) and len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        yield node, "swap"
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield node, "return"
    if isinstance(node, (ast.Expr, ast.AugAssign)) and not _is_docstring(node) and not _speaks(node):
        yield node, "drop"
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from points(child)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _text(node: ast.BinOp) -> bool:
    """Whether it concatenates strings, lists or tuples, where no other operator works."""
    literal = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)
    sides = (node.left, node.right)
    return any(isinstance(n, literal) or isinstance(n, ast.Constant) and isinstance(n.value, str) for n in sides)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _speaks(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _name(node.value.func) in SPOKEN


def changed(node: ast.AST, kind: str) -> Tuple[ast.AST, str]:
    """The changed node, and a description of the change."""
    before, new = ast.unparse(node), copy.deepcopy(node)
    if kind == "compare":
        new.ops[0] = COMPARE[type(node.ops[0])]()  # type: ignore[attr-defined]
    elif kind == "arithmetic":
        new.op = ARITHMETIC[type(node.op)]()  # type: ignore[attr-defined]
    elif kind == "and-or":
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()  # type: ignore[attr-defined]
    elif kind == "negate":
        new.test = ast.UnaryOp(op=ast.Not(), operand=node.test)  # type: ignore[attr-defined]
        return new, f"if {ast.unparse(node.test)}: its opposite"  # type: ignore[attr-defined]
    elif kind == "constant":
        value = node.value  # type: ignore[attr-defined]
        new.value = (not value) if isinstance(value, bool) else value + 1  # type: ignore[attr-defined]
    elif kind == "swap":
        new.args[:2] = new.args[1::-1]  # type: ignore[attr-defined]
    elif kind == "return":
        new.value = ast.Constant(None)  # type: ignore[attr-defined]
    elif kind == "drop":
        return ast.Pass(), f"{before}  ->  left out"
    return new, f"{before}  ->  {ast.unparse(new)}"


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self._new, node) if node is self._old else self.generic_visit(node)


def mutants(files: Sequence[Path]) -> List[Tuple[Path, int, str]]:
    """(file, index of the point in it, kind) of every possible change."""
    return [
        (file, number, kind)
        for file in files
        for number, (_, kind) in enumerate(points(ast.parse(file.read_text(encoding="utf-8"))))
    ]


def make(file: Path, number: int) -> Mutant:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    node, kind = list(points(tree))[number]
    new, what = changed(node, kind)
    line = getattr(node, "lineno", 0)
    source = ast.unparse(ast.fix_missing_locations(_Replace(node, new).visit(tree)))
    return Mutant(str(file.relative_to(ROOT)), line, " ".join(what.split())[:160], source)


def tests_for(path: str, folder: Path) -> List[str]:
    names = next(names for pattern, names in TESTS.items() if path.startswith(pattern))
    found = [f"tests/unit/{name}.py" for name in names]
    return [name for name in found if (folder / name).is_file()]


def judge(folder: Path, tests: Sequence[str], timeout: float) -> Killed:
    """Runs tests in a fork of this process, which has imported slow packages but nothing of the plugin."""
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _run_tests(folder, tests)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - start
        if done:
            code = os.waitstatus_to_exitcode(status)
            return Killed(code != 0, seconds, {0: "survived", 1: "a test failed"}.get(code, f"exit {code}"))
        if seconds > timeout:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Killed(True, seconds, "no end")
        time.sleep(0.05)


def _run_tests(folder: Path, tests: Sequence[str]) -> None:
    import pytest

    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.path.insert(0, str(folder))
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    code = 70
    try:
        code = int(pytest.main([*arguments, *tests]))
    finally:
        os._exit(code)


def copied(folder: Path) -> None:
    """The files of the plugin and its tests that git tracks, as in the working tree."""
    names = ["kd_plugin", "tests", "scripts", "examples", "pyproject.toml", "setup.py", "README.md"]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *names],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def chosen_files(names: Sequence[str]) -> List[Path]:
    files: List[Path] = []
    for name in names:
        path = ROOT / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [file for file in files if file.name != "__init__.py"]


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", default=DEFAULT, help="files or folders (default: those with a published score)"
    )
    parser.add_argument("--count", type=int, default=68, help="mutants to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds for a mutant's tests (default: %(default)s)"
    )
    parser.add_argument("--all-unit-tests", action="store_true", help="run all of tests/unit on surviving mutants")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    args = parser.parse_args(argv)
    everything = mutants(chosen_files(args.files))
    drawn = sorted(random.Random(args.seed).sample(everything, min(args.count, len(everything))))
    print(f"{len(drawn)} of {len(everything)} mutants, seed {args.seed}", flush=True)
    if args.list:
        for file, number, _ in drawn:
            mutant = make(file, number)
            print(f"{mutant.path}:{mutant.line}  {mutant.what}")
        return 0

    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "scripts")]
    import fairseq.tasks.translation  # noqa: F401  (slow imports, once for all)
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    survivors: List[Mutant] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copied(folder)
        modules = sorted({str(file.relative_to(ROOT)) for file, _, _ in drawn})
        for tests in sorted({tuple(tests_for(name, folder)) for name in modules}):
            unchanged = judge(folder, tests, args.timeout)
            print(f"unchanged, {len(tests)} files of tests: {unchanged.why}, {unchanged.seconds:.0f} s", flush=True)
            if unchanged.killed:
                print(f"{' '.join(tests)} fail without a mutant", file=sys.stderr)
                return 1
        for number, (file, point, _) in enumerate(drawn, 1):
            mutant = make(file, point)
            place = folder / mutant.path
            before = place.read_bytes()
            place.write_text(mutant.source, encoding="utf-8")
            verdict = judge(folder, tests_for(mutant.path, folder), args.timeout)
            if not verdict.killed and args.all_unit_tests:
                verdict = judge(folder, ["tests/unit"], 3 * args.timeout)
            place.write_bytes(before)
            survivors += [] if verdict.killed else [mutant]
            print(
                f"{number:3} {verdict.why:13} {verdict.seconds:5.0f} s  {mutant.path}:{mutant.line}  {mutant.what}",
                flush=True,
            )
    print(f"\n{len(drawn) - len(survivors)} of {len(drawn)} detected: {1 - len(survivors) / len(drawn):.1%}")
    for mutant in survivors:
        print(f"survived: {mutant.path}:{mutant.line}  {mutant.what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
