"""The parts of `kd-plugin distill`'s file, each checked: names, numbers, words of commands, files that must exist."""

import os
import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from kd_plugin.errors import KDPluginError
from kd_plugin.files.yaml_text import check_keys, wrong
from kd_plugin.pipeline.paths import absolute
from kd_plugin.pipeline.schema import (
    CACHE,
    NAME,
    NONE,
    OFF,
    ONLINE,
    OWN,
    SECTIONS,
    SUBWORDS,
    Corpus,
    Student,
    Training,
    Words,
)
from kd_plugin.runners.fairseq_train import train_words


class Reader:
    """Reads parts of the file. Errors name the line of the part's key at the top."""

    def __init__(self, path: str, lines: Dict[str, int]):
        self._path, self._lines = path, lines

    def wrong(self, key: str, what: str, remedy: str) -> KDPluginError:
        return wrong(self._at(key), what, remedy)

    def _at(self, key: str) -> str:
        return f"{self._path}, line {self._lines[key]}" if key in self._lines else self._path

    def mapping(self, key: str, value: Any) -> Dict[str, Any]:
        if value in ("", *OFF):
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, f"`{key}` is no mapping", f"lines such as `  name: value` below `{key}:`")
        return value

    def text(self, mapping: Dict[str, Any], key: str, default: str = "", place: str = "") -> str:
        value = mapping.get(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(place or key, f"`{key}` is missing or is no text", f"`{key}: …`")
        return value

    def name(self, key: str, name: str) -> None:
        if not NAME.match(name):
            raise self.wrong(key, f"`{name}` of `{key}` cannot be a folder's name", "letters, digits, - and _")

    def whole(self, place: str, mapping: Dict[str, Any], key: str, least: int, default: int) -> int:
        value = mapping.get(key, default)
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = least - 1
        if not least <= number < 2**31:
            raise self.wrong(place, f"`{key}: {value}`", f"a whole number, {least} or more")
        return number

    def boolean(self, place: str, mapping: Dict[str, Any], key: str, default: bool) -> bool:
        value = mapping.get(key, str(default).lower())
        if value not in ("true", "false"):
            raise self.wrong(place, f"`{key}: {value}` of `{place}`", "true or false")
        return bool(value == "true")

    def words(self, key: str, value: Any) -> Words:
        return absolute(train_words(self._at(key), key, value, OWN, "distill"))

    def file(self, key: str, path: str) -> str:
        if not os.path.exists(path):
            raise self.wrong(key, f"`{key}` names {path}, which does not exist", "an existing file or folder")
        return os.path.abspath(path)

    def options(self, verb: str, value: Any, flags: Dict[str, bool]) -> Optional[Words]:
        """A section as words of its verb."""
        if value is None or value in OFF:
            return None
        section = self.mapping(verb, value)
        check_keys(self._path, section, sorted(set(flags) - set(SECTIONS[verb])), f"of `{verb}`")
        words: Words = []
        for name, given in section.items():
            values = given if isinstance(given, list) else [given]
            if not all(isinstance(each, str) and each for each in values):
                raise self.wrong(verb, f"`{name}` of `{verb}` is neither text nor a list", f"`{name}: value`")
            if flags[name]:
                words += [f"--{name}"] if self.boolean(verb, section, name, False) else []
            else:
                words += [f"--{name}", *absolute(values)]
        return words

    def corpus(self, value: Any) -> Corpus:
        if isinstance(value, str):
            return self._prepared(value)
        section = self.mapping("corpus", value)
        keys = "source-lang target-lang train valid tests monolingual make sentencepiece-model dictionary subwords"
        check_keys(self._path, section, ["prepared", *keys.split()], "of `corpus`")
        if "prepared" in section:
            corpus = self._prepared(self.text(section, "prepared", place="corpus"))
            return corpus._replace(monolingual=self._monolingual(section))
        languages = tuple(self.text(section, f"{side}-lang", place="corpus") for side in ("source", "target"))
        make = None
        if "make" in section:
            make = absolute(shlex.split(self.text(section, "make", place="corpus")))
            if "{folder}" not in make:
                raise self.wrong("corpus", "`make` has no word {folder}, where it is to write", "`make: … {folder}`")
        tests = section.get("tests")
        if not isinstance(tests, dict) or not tests:
            raise self.wrong("corpus", "`tests` of `corpus` is no mapping of names to texts", "`tests: {test: PREFIX}`")
        texts = []
        for key, prefix in [(key, section.get(key)) for key in ("train", "valid")] + list(tests.items()):
            if not isinstance(prefix, str) or not prefix:
                raise self.wrong("corpus", f"`{key}` of `corpus` is missing", f"`{key}: PREFIX`, of PREFIX.LANG")
            self.name("corpus", key)
            if prefix.startswith("{folder}/") and make:
                texts.append("text/" + prefix[len("{folder}/") :])
                continue
            for language in languages:
                if not os.path.isfile(f"{prefix}.{language}"):
                    raise self.wrong(
                        "corpus", f"`{key}: {prefix}`: {prefix}.{language} does not exist", "PREFIX of PREFIX.LANG"
                    )
            texts.append(os.path.abspath(prefix))
        model, dictionary = (
            self.file("corpus", section[key]) if key in section else None
            for key in ("sentencepiece-model", "dictionary")
        )
        subwords = self.mapping("corpus", section.get("subwords", {}))
        check_keys(self._path, subwords, SUBWORDS, "of `subwords`")
        for key, given in subwords.items():
            if not isinstance(given, str) or not re.fullmatch(SUBWORDS[key], given):
                raise self.wrong("corpus", f"`{key}: {given}` of `subwords`", f"{SUBWORDS[key]}")
        if (model is None) == ("vocab_size" not in subwords) or (dictionary and not model):
            raise self.wrong(
                "corpus",
                "`corpus` needs either `sentencepiece-model` or a `vocab_size` of `subwords`",
                "`subwords: {vocab_size: 4000}`",
            )
        return Corpus(
            languages,
            texts[0],
            texts[1],
            dict(zip(tests, texts[2:])),
            self._monolingual(section),
            None,  # type: ignore[arg-type]
            make,
            model,
            dictionary,
            dict(subwords),
        )

    def _monolingual(self, section: Dict[str, Any]) -> Optional[str]:
        return (
            self.file("corpus", self.text(section, "monolingual", place="corpus")) if "monolingual" in section else None
        )

    def _prepared(self, folder: str) -> Corpus:
        root = Path(os.path.abspath(folder))
        try:
            pair = re.findall(r"^pair (\S+)-(\S+)$", (root / "prepared.txt").read_text(encoding="utf-8"), re.MULTILINE)[
                0
            ]
            tests = [line.split() for line in (root / "testsets.txt").read_text(encoding="utf-8").splitlines()]
            named = {title: str(root / "raw" / name) for name, title in tests}
        except (OSError, IndexError, ValueError) as error:
            raise self.wrong(
                "corpus",
                f"{folder} was not made by prepare-*.sh ({error})",
                "such a folder, or a mapping with train, valid, tests, source-lang, target-lang and subwords",
            ) from error
        for file in ("spm.model", "dict.txt", "data-bin", f"raw/train.{pair[0]}", f"raw/valid.{pair[0]}"):
            self.file("corpus", str(root / file))
        return Corpus(
            pair,
            str(root / "raw/train"),
            str(root / "raw/valid"),
            named,
            None,
            str(root),
            None,
            str(root / "spm.model"),
            str(root / "dict.txt"),
            {},
        )

    def training(self, key: str, section: Dict[str, Any]) -> Training:
        every = self.whole(key, section, "every", 1, 1) if "every" in section else None
        words = self.words(key, section.get("train"))
        return Training(words, self.whole(key, section, "average", 0, 0), every)

    def teacher(self, value: Any) -> Tuple[Optional[str], Optional[Training]]:
        if value is None or value in OFF:
            return None, None
        section = self.mapping("teacher", value)
        check_keys(self._path, section, ("path", "train", "average", "every"), "of `teacher`")
        if ("path" in section) == ("train" in section):
            raise self.wrong("teacher", "`teacher` needs either `path` or `train`", "`teacher: {path: teacher.pt}`")
        if "path" in section:
            paths = self.text(section, "path", place="teacher").split(":")
            return ":".join(self.file("teacher", path) for path in paths), None
        return None, self.training("teacher", section)

    def students(self, value: Any, taught: str, init: bool) -> List[Student]:
        students = []
        for name, section in self.mapping("students", value).items():
            self.name("students", name)
            section = self.mapping("students", section)
            check_keys(self._path, section, "train average every seeds teacher data init".split(), f"of `{name}`")
            if not section.get("train"):
                raise self.wrong("students", f"`{name}` has no `train`", "`train: --arch …`, fairseq-train's arguments")
            seeds = section.get("seeds", ["1"])
            if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
                raise self.wrong("students", f"`seeds` of `{name}` is no list of different seeds", "`seeds: [1, 2]`")
            kinds = {"cache": [CACHE] * (taught == CACHE), "online": [ONLINE] * (taught != NONE), "none": [NONE]}
            teacher = section.get("teacher", taught)
            if not isinstance(teacher, str) or not kinds.get(teacher):
                allowed = ", ".join(kind for kind, given in kinds.items() if given)
                raise self.wrong("students", f"`teacher: {teacher}` of `{name}`", allowed)
            data = section.get("data", "mixed")
            if data not in ("mixed", "original"):
                raise self.wrong("students", f"`data: {data}` of `{name}`", "mixed or original")
            starts = section.get("init", str(init).lower())
            if starts not in ("true", "false", "shape"):
                raise self.wrong("students", f"`init: {starts}` of `{name}`", "true, false or shape")
            if starts != "false" and not init:
                raise self.wrong("students", f"`init` of `{name}` without `init:` at the top", "`init: {}`")
            students.append(
                Student(
                    name,
                    self.training("students", section),
                    [self.whole("students", {"seeds": seed}, "seeds", 0, 0) for seed in seeds],
                    teacher,
                    data == "original",
                    starts,
                )
            )
        return students
