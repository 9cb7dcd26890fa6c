"""README and pages: their commands, links, limits, generated tables, messages and pictures are true."""

import argparse
import ast
import json
import re
import runpy
import shlex
import sys
from dataclasses import fields

import numpy as np
import pytest

from kd_plugin.cache.manifest import Identity
from kd_plugin.cache.records import Records
from kd_plugin.cache.store import Store
from kd_plugin.cache.writer import ShardWriter, StoreFolder, plan_shards
from kd_plugin.cli import build_parser
from kd_plugin.cli.numbers import check_numbers
from kd_plugin.cli.verbs import VERBS
from kd_plugin.criterions.kd_label_smoothed_cross_entropy import KDLabelSmoothedCrossEntropyCriterion
from kd_plugin.tasks.distillation_translation import DistillationTranslationConfig, DistillationTranslationTask
from kd_plugin.version import __version__
from tests.support import ROOT
from tests.unit.test_map import HOUSE

sys.path.insert(0, str(ROOT / "docs" / "tools"))

import pictures  # noqa: E402
import references  # noqa: E402

RECIPES = ROOT / "examples" / "translation"
README, RECIPES_README = ROOT / "README.md", RECIPES / "README.md"
SITE = sorted(path for path in (ROOT / "docs").rglob("*.md") if "benchmarks" not in path.parts)
BENCHMARKS = sorted((ROOT / "docs" / "benchmarks").glob("*.md"))
PAGES = [README, RECIPES_README, *SITE]
BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- (tested|needs): (.+) -->$")
REST = "…"  # in a command: as before
# neither ours nor fairseq's
OTHERS = {"cat", "echo", "llama-server", "ollama", "sacrebleu", "spm_encode", "subword-nmt", "vllm"}
KEYWORDS = {"for", "done", "export"}
GENERATED = re.compile(r"<!-- generated: ([a-z-]+) -->((?:(?!<!--).)*)<!-- end -->", re.DOTALL)


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """(marker, commands) of each shell block; the marker is the line before it: what tests it, or what it needs."""
    text = path.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        before = text[: found.start()].rstrip("\n").rpartition("\n")[2].strip()
        yield before, re.sub(rf"^{found.group(1)}", "", found.group(2), flags=re.MULTILINE)


def commands(block):
    """(variables set for it, words) of each command."""
    block = re.sub(r"(^|\s)#.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(block, posix=True, punctuation_chars=";<>|&()\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    words, skip = [], False
    for word in [*lexer, "\n"]:
        if skip:
            skip = False
        elif set(word) <= set("<>"):
            skip = True
        elif re.fullmatch(r"\$[A-Z_]+", word):
            words.append("0")  # a number that a batch system gives
        elif word and set(word) <= set(";|&()\n"):
            while words and words[0] == "do":
                del words[0]
            variables = []
            while words and re.match(r"[A-Z_]+=", words[0]):
                variables.append(words.pop(0).partition("=")[0])
            if words:
                yield variables, words
            words = []
        else:
            words.append(word)


ALL_BLOCKS = [
    pytest.param(*block, id=f"{name(path)}-{number}") for path in PAGES for number, block in enumerate(blocks(path))
]


@pytest.mark.parametrize("marker, block", ALL_BLOCKS)
def test_every_shell_block_is_run_by_a_test_or_says_what_it_needs(marker, block):
    found = MARKER.match(marker)
    assert found, f"before this block stands neither what tests it nor what it needs: {block}"
    if found.group(1) == "tested":
        path, _, test = found.group(2).partition(";")[0].partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, marker


@pytest.mark.parametrize("marker, block", ALL_BLOCKS)
def test_every_command_is_one_that_there_is(marker, block):
    for variables, words in commands(block):
        program, arguments = words[0], [word for word in words[1:] if word != REST]
        rest = REST in words
        if program == "kd-plugin":
            check_verb(arguments, rest)
        elif program.startswith("fairseq-"):
            check_fairseq(program, arguments, rest)
        elif program.endswith(".sh"):
            check_script(program, variables)
        elif program in ("python", "python3"):
            if arguments[0] not in ("-c", "-m"):
                check_python(arguments)
        else:
            assert program in OTHERS | KEYWORDS, words


def check_verb(arguments, rest):
    if arguments in (["path"], ["--version"]):
        return
    parser = references.verb_parser(arguments[0])
    if rest:
        for action in parser._actions:
            action.required = False
            if not action.option_strings:
                action.nargs = "?"
    check_numbers(parser.parse_args(arguments[1:]))


def check_fairseq(program, arguments, rest):
    from fairseq import options

    if program == "fairseq-hydra-train":
        parser = argparse.ArgumentParser()
        parser.add_argument("--config-dir")
        parser.add_argument("--config-name")
        parser.add_argument("overrides", nargs="*")
        given = parser.parse_args(arguments)
        assert (RECIPES / "config" / f"{given.config_name}.yaml").is_file()
        for override in given.overrides:
            key = override.partition("=")[0]
            known = {f"task.{field.name}" for field in fields(DistillationTranslationConfig)} | {"checkpoint.save_dir"}
            assert key in known, override
        return
    parsers = {
        "fairseq-train": options.get_training_parser,
        "fairseq-generate": options.get_generation_parser,
        "fairseq-interactive": options.get_interactive_generation_parser,
        "fairseq-preprocess": options.get_preprocessing_parser,
    }
    parser = parsers[program]()
    arguments = without_user_dir(arguments)
    if program == "fairseq-preprocess":
        parser.parse_args(arguments)
        return
    if program == "fairseq-train":
        if rest:
            for flag, value in (("--task", DISTILLED[0]), ("--criterion", DISTILLED[1]), ("--optimizer", "adam")):
                arguments += [] if flag in arguments else [flag, value]
        arguments += [] if "--arch" in arguments else ["--arch", "transformer"]
    options.parse_args_and_arch(parser, input_args=arguments)


DISTILLED = ("distillation_translation", "kd_label_smoothed_cross_entropy")


def without_user_dir(arguments):
    """The plugin is imported here already."""
    if "--user-dir" not in arguments:
        return arguments
    at = arguments.index("--user-dir")
    assert arguments[at + 1] in ("$(kd-plugin path)", "kd_plugin")
    return arguments[:at] + arguments[at + 2 :]


def check_script(program, variables):
    path = ROOT / program if "/" in program else RECIPES / program
    text = path.read_text(encoding="utf-8")
    for called in {"common.sh", *re.findall(r"\$here/([\w-]+\.sh)", text)}:
        text += (RECIPES / called).read_text(encoding="utf-8")
    for variable in variables:
        assert re.search(rf"\b{variable}\b", text), f"{program} reads no {variable}"


def check_python(arguments):
    path = ROOT / arguments[0]
    text = path.read_text(encoding="utf-8")
    if path.parent.name == "scripts":
        text += (ROOT / "scripts" / "benchmarking.py").read_text(encoding="utf-8")
    for module in re.findall(r"^from ([\w.]+) import main\b", text, re.MULTILINE):  # which has its flags
        text += (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    for flag in (word for word in arguments[1:] if word.startswith("--")):
        assert f'"{flag}"' in text, f"{path} has no {flag}"


@pytest.mark.parametrize(
    "bad", ["kd-plugin cache data --teacher-pth a.pt …", "fairseq-train data --kd-alfa 1 …", "rm -r x"]
)
def test_a_misspelt_command_is_noticed(bad, capsys):
    with pytest.raises((SystemExit, AssertionError)):
        test_every_command_is_one_that_there_is("", bad)


@pytest.mark.parametrize("path, longest", [(README, 180), (RECIPES_README, 150)], ids=["README", "recipes"])
def test_the_first_pages_are_short(path, longest):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= longest
    assert [line for line in lines if len(line) > 100 and "<!--" not in line] == []


@pytest.mark.parametrize("path", [*SITE, *BENCHMARKS], ids=name)
def test_a_page_opens_with_what_its_reader_can_do_after_it(path):
    title, empty, lead = path.read_text(encoding="utf-8").split("\n")[:3]
    assert title.startswith("# ") and not empty and re.match(r"\*\*After this page you (can|know)\*\* ", lead)


def test_the_recipes_readme_has_the_commands_of_the_recipe_pages():
    """Which tests/integration/test_recipes.py, test_examples.py and test_pipeline.py run."""
    pages = (RECIPES_README, *(ROOT / "docs" / "recipes" / f"{name}.md" for name in ("multi30k", "iwslt14")))
    short, *whole = ({shlex.join(words) for _, block in blocks(path) for _, words in commands(block)} for path in pages)
    assert len(short) > 10 and short - set().union(*whole) == set()


def anchors(text):
    """Of headings, as MkDocs and GitHub make them."""
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        yield re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()).strip())


@pytest.mark.parametrize("path", [*PAGES, *BENCHMARKS], ids=name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    without_code = re.sub(r"`[^`\n]*`", "", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL))
    links = re.findall(r"\]\(([^)\s]+)\)", without_code) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.MULTILINE)
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.is_file(), link
        whole = there.read_text(encoding="utf-8") if there.suffix == ".md" else ""
        for included in re.findall(r"<!-- include: (\S+) -->", whole):
            whole += (ROOT / included).read_text(encoding="utf-8")
        assert not anchor or anchor in set(anchors(whole)), link


def test_every_training_flag_is_in_the_reference_and_no_other():
    parser = argparse.ArgumentParser(add_help=False)
    for part in (DistillationTranslationTask, KDLabelSmoothedCrossEntropyCriterion):
        part.add_args(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    listed = {
        flag for cell in re.findall(r"^\| ([^|]*) \|", references.training_flags(), flags=re.MULTILINE)
        for flag in re.findall(r"`(-[^`]*)`", cell)
    }  # fmt: skip
    assert {"--teacher-path", "--kd-alpha", "--label-smoothing", "--upsample-primary"} <= flags
    assert listed == flags


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_is_in_the_reference_and_no_other(verb):
    (section,) = re.findall(rf"^## kd-plugin {verb}\n(.*?)(?=^## |\Z)", references.commands(), re.MULTILINE | re.DOTALL)
    listed = {
        flag.split()[0] for flag in re.findall(r"`(-[^`]*)`", "".join(re.findall(r"^\| (.*?) \|", section, re.M)))
    }
    options = {
        flag
        for action in references.verb_parser(verb)._actions
        for flag in action.option_strings
        if action.help is not argparse.SUPPRESS
    } - {"-h", "--help"}
    assert listed == options
    build_parser(verb)


def texts_of_messages():
    """Every string that the package may say, with a NUL where a value stands."""
    for path in (ROOT / "kd_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_troubleshooting_quotes_real_messages():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`$", text, flags=re.MULTILINE)
    of_others = {"unrecognized arguments: --teacher-path", "Weights only load failed"}
    assert len(set(quoted) - of_others) >= 20
    messages = list(texts_of_messages())
    for quote in set(quoted) - of_others:
        parts = [re.escape(part.strip()) for part in quote.split("…") if part.strip()]
        wanted = re.compile(".*\0.*".join(parts) if len(parts) > 1 else parts[0], flags=re.DOTALL)
        assert any(wanted.search(message) for message in messages), quote


def test_pictures_are_as_their_script_draws_them():
    for picture, draw in pictures.PICTURES.items():
        assert (pictures.FOLDER / f"{picture}.svg").read_text(encoding="utf-8") == draw(), "docs/tools/pictures.py"
    assert [room for _, names in pictures.ROOMS for room in names] == HOUSE


def test_numbers_in_picture_and_readme_are_those_of_the_results():
    data = json.loads((pictures.FOLDER / "multi30k.json").read_text(encoding="utf-8"))
    results = (ROOT / "docs" / "results" / "published-format.md").read_text(encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    for row in data["models"]:
        speed = str(row["sentences_per_second"])
        cells = f"| {row['bleu']} | {speed} | {row['megabytes']}"
        assert cells in results
        assert all(number in readme for number in (str(row["bleu"]), speed))
    for row in (data["teacher"], data["published"]):
        assert f"| {row['bleu']} |" in results and f"| {row['bleu']} |" in readme


@pytest.mark.parametrize("vocab", [40, 70_000])
def test_the_reader_in_file_formats_reads_a_cache(vocab, tmp_path):
    page = (ROOT / "docs" / "reference" / "file-formats.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    room = {}
    exec(code, room)  # noqa: S102
    sizes, random = np.array([700, 1, 900, 1500]), np.random.default_rng(1)
    identity = Identity("topk", 3, 1.0, vocab, 0, "fp32", 1600, "train", "a", [9, 9], {"tokens": 3101}, [], {})
    store, plans = StoreFolder(tmp_path, identity), plan_shards(sizes, identity.shard_tokens)
    for plan in plans:
        records = Records(
            random.integers(0, vocab, (plan.size, 3)),
            -random.random((plan.size, 3)).astype(np.float32),
            -random.random(plan.size).astype(np.float32),
        )
        writer = ShardWriter(store, plan, sizes)
        writer.add(np.arange(plan.first, plan.last), records)
        writer.finish()
    assert len(plans) > 1
    store.conclude(store.all_finished(plans))
    expected = Store(tmp_path).read(np.arange(sizes.sum()))
    for found, wanted in zip(room["read_cache"](tmp_path), expected):
        assert (found == wanted).all()
    with open(tmp_path / "shard-00000.bin", "r+b") as file:
        file.write(b"\xff")
    with pytest.raises(AssertionError):
        room["read_cache"](tmp_path)


def test_version_of_citation_and_changelog_is_the_package_s():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [__version__]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", changelog, flags=re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    assert headings[1].startswith(f"[{__version__}]")


@pytest.mark.parametrize("repository", [None, "somebody/kd_plugin"])
def test_metadata_links_to_the_repository_that_builds_a_release(repository, monkeypatch):
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **metadata: given.update(metadata))
    for variable, value in (("GITHUB_SERVER_URL", "https://github.com"), ("GITHUB_REPOSITORY", repository)):
        monkeypatch.setenv(variable, value) if repository else monkeypatch.delenv(variable, raising=False)
    runpy.run_path(str(ROOT / "setup.py"))
    page = given["long_description"]
    if repository is None:
        assert given["project_urls"] == {} and page == README.read_text(encoding="utf-8")
        return
    assert given["project_urls"]["Documentation"] == "https://somebody.github.io/kd_plugin/"
    assert given["project_urls"]["Source"] == "https://github.com/somebody/kd_plugin"
    links = re.findall(r"\]\(([^)\s]+)\)", page) + re.findall(r"^\[[^\]]+\]: (\S+)$", page, flags=re.MULTILINE)
    assert links and all(link.startswith("https://") for link in links)
    assert f"https://github.com/somebody/kd_plugin/blob/v{__version__}/docs/choose.md" in links


def test_workflows_and_forms_are_yaml():
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".github"
    files = [*folder.rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) >= 7
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
    matrix = yaml.safe_load((folder / "workflows" / "tests.yml").read_text())["jobs"]["unit-and-faults"]["strategy"]
    assert matrix["matrix"]["python"] == ["3.8", "3.10", "3.11", "3.12"]


@pytest.mark.parametrize("kind", ["sentence_prediction", "sequence_tagging"])
def test_every_flag_of_labelling_is_in_the_reference(kind):
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    parser = argparse.ArgumentParser(add_help=False)
    for part in (TASK_REGISTRY[f"distillation_{kind}"], CRITERION_REGISTRY[f"kd_{kind}"]):
        part.add_args(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    text = references.label_flags() + references.training_flags()
    listed = {
        flag for cell in re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE) for flag in re.findall(r"`(-[^`]*)`", cell)
    }
    assert {"--teacher-labels", "--kd-unlabelled", "--kd-alpha"} <= flags
    assert flags <= listed
    assert not flags & {"--kd-inplace", "--kd-fused-head", "--kd-packed-student", "--kd-on-policy"}


def test_generated_parts_of_the_pages_are_there_without_the_site():
    text = {path: path.read_text(encoding="utf-8") for path in SITE}
    parts = {name: part for page in text.values() for name, part in GENERATED.findall(page)}
    assert set(parts) == set(references.WRITERS)
    assert sum(page.count("<!-- generated: ") for page in text.values()) == len(parts)
    sizes = parts.pop("student-architectures")
    assert sizes.strip() == references.student_architectures()  # python docs/tools/references.py student-architectures
    for name, part in parts.items():
        assert f"python docs/tools/references.py {name}" in part  # what prints it
