"""The sdist and the wheel are complete, and what they install works from any directory, as a user installs it."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_DIRS = (".ci", ".github", "docs", "examples", "kd_plugin", "scripts", "tests")
TOP_FILES = (
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "mkdocs.yml",
    "pyproject.toml",
    "setup.py",
)
# What running the recipes and the tests leaves in a checkout; none of it may be shipped.
LEFT_BEHIND = ("__pycache__", ".hypothesis", "checkpoints", "data-bin", "multi30k")

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"

IMPORT_USER_DIR = """
import os, sys
from argparse import Namespace
from fairseq import criterions, tasks, utils
utils.import_user_module(Namespace(user_dir=sys.argv[1]))
import kd_plugin
print(os.path.dirname(kd_plugin.__file__))
print(tasks.TASK_REGISTRY["distillation_translation"].__module__)
print(criterions.CRITERION_REGISTRY["kd_label_smoothed_cross_entropy"].__module__)
"""


def run(*command, cwd):
    # Without PYTHONPATH, which may point at the checkout and hide a file that the wheel lacks.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=str(cwd), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def source_files(*suffixes, under=SOURCE_DIRS):
    """Paths of the checkout's own files with one of these endings, relative to its root."""
    files = {path.relative_to(ROOT) for name in under for path in (ROOT / name).rglob("*") if path.is_file()}
    return {
        str(path) for path in files if path.suffix in suffixes and not set(path.parts) & _left_behind(path.parts[0])
    }


def _left_behind(top):
    """What is not of the checkout in one of its folders; kd_plugin has a room called checkpoints."""
    return set(LEFT_BEHIND) - ({"checkpoints"} if top == "kd_plugin" else set())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("a path with spaces")


@pytest.fixture(scope="module")
def sdist(folder):
    """Built from a copy, because setuptools writes into the tree it builds from."""
    checkout = folder / "checkout"
    for name in SOURCE_DIRS:
        shutil.copytree(
            str(ROOT / name), str(checkout / name), ignore=shutil.ignore_patterns(*_left_behind(name), "*.pt")
        )
    for name in TOP_FILES:
        shutil.copy(str(ROOT / name), str(checkout / name))
    for name in LEFT_BEHIND:
        (checkout / "examples" / "translation" / name).mkdir()
        (checkout / "examples" / "translation" / name / "left_behind.py").touch()
    (checkout / "tests" / "left_behind.pt").touch()
    run(sys.executable, "-c", BUILD, "sdist", folder / "dist", cwd=checkout)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(folder, sdist):
    """Built from the unpacked sdist, so that a file the sdist lacks is missed here too."""
    with tarfile.open(str(sdist)) as archive:
        archive.extractall(str(folder / "unpacked"))
    (tree,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", BUILD, "wheel", folder / "dist", cwd=tree)
    (archive,) = (folder / "dist").glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def installed(folder, wheel):
    """The commands of a clean environment that holds the wheel and sees this environment's torch and fairseq."""
    home = folder / "venv"
    venv.create(str(home), with_pip=False)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # After the installation, so that pip does not take a kd-plugin of this environment for its own. A .pth file that
    # lies in these folders has no effect there: an editable kd-plugin stays out of sight.
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    borrowed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    Path(site_packages, "borrowed.pth").write_text("\n".join(borrowed))
    return home / "bin"


def test_the_sdist_holds_every_source_file_and_nothing_left_behind(sdist):
    with tarfile.open(str(sdist)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = (
        source_files(".py", ".sh", ".md", ".yaml", ".yml", ".typed", ".html", ".css", ".js", ".svg")
        | set(TOP_FILES)
        | {".ci/run"}
    )
    assert expected - names == set()
    assert [name for name in names if "left_behind" in name] == []


def test_the_wheel_holds_every_module_and_only_the_package(wheel):
    names = set(zipfile.ZipFile(str(wheel)).namelist())
    assert source_files(".py", ".typed", ".html", ".css", ".js", under=["kd_plugin"]) - names == set()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"kd_plugin"}
    assert any(name.endswith("LICENSE") for name in names)


def test_the_metadata_picks_fairseq_by_python_version(wheel):
    archive = zipfile.ZipFile(str(wheel))
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode().replace("'", '"').replace(" (", "").replace(")", "")
    requirements = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: fairseq")]
    assert len(requirements) == 2
    for distribution, condition in (
        ("fairseq==0.12.2", 'python_version < "3.11"'),
        ("fairseq-fixed==0.12.3.1", 'python_version >= "3.11"'),
    ):
        assert [line for line in requirements if distribution in line and condition in line], metadata


def test_the_installed_path_is_a_user_dir_that_registers(installed, tmp_path):
    path = run(installed / "kd-plugin", "path", cwd=tmp_path).rstrip("\n")
    assert Path(path).parent != ROOT and Path(path, "__init__.py").is_file()
    where, task, criterion = run(installed / "python", "-c", IMPORT_USER_DIR, path, cwd=tmp_path).splitlines()[-3:]
    assert where == path
    assert task == "kd_plugin.tasks.distillation_translation"
    assert criterion == "kd_plugin.criterions.kd_label_smoothed_cross_entropy"
