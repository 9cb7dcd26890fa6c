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
            raise self.wrong(
                key, f"`{name}` of `{key}` cannot be a folder's name", "at most 100 letters, digits, - and _"
            )

    def whole(
        self, place: str, mapping: Dict[str, Any], key: str, least: int, default: int, most: int = 2**31 - 1
    ) -> int:
        value = str(mapping.get(key, default))
        number = int(value) if re.fullmatch("[0-9]{1,10}", value) else -1
        if not least <= number <= most:
            raise self.wrong(place, f"`{key}: {value}`", f"a whole number from {least} to {most}")
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
        """A section as words of its verb; it is a mapping, or text as on the command line."""
        if value is None or value in OFF:
            return None
        allowed = sorted(set(flags) - set(SECTIONS[verb]))
        if isinstance(value, str) and value.startswith("--"):
            words = self.split(verb, value)
            given = {word[2:].partition("=")[0]: "" for word in words if word.startswith("--")}
            check_keys(self._at(verb), given, allowed, f"of `{verb}`")
            return absolute(words)
        section = self.mapping(verb, value)
        check_keys(self._path, section, allowed, f"of `{verb}`")
        words = []
        for name, given in section.items():
            values = given if isinstance(given, list) else [given]
            if not all(isinstance(each, str) and each for each in values):
                raise self.wrong(verb, f"`{name}` of `{verb}` is neither text nor a list", f"`{name}: value`")
            if flags[name]:
                words += [f"--{name}"] if self.boolean(verb, section, name, False) else []
            else:
                words += [f"--{name}", *absolute(values)]
        return words

    def split(self, key: str, value: str) -> Words:
        try:
            return shlex.split(value)
        except ValueError as error:
            raise self.wrong(key, f"`{key}` cannot be split into words ({error})", "quote it as in a shell") from error

    def corpus(self, value: Any) -> Corpus:
        if isinstance(value, str):
            return self._prepared(value)
        section = self.mapping("corpus", value)
        keys = "source-lang target-lang train valid tests monolingual make sentencepiece-model dictionary subwords"
        check_keys(self._path, section, ["prepared", *keys.split()], "of `corpus`")
        if "prepared" in section:
            corpus = self._prepared(self.text(section, "prepared", place="corpus"))
            return corpus._replace(monolingual=self._monolingual(section))
        languages = (self.text(section, "source-lang", "", "corpus"), self.text(section, "target-lang", "", "corpus"))
        make = None
        if "make" in section:
            make = absolute(self.split("corpus", self.text(section, "make", place="corpus")))
            if "{folder}" not in make:
                raise self.wrong("corpus", "`make` has no word {folder}, where it is to write", "`make: … {folder}`")
        tests = section.get("tests")
        if not isinstance(tests, dict) or not tests:
            raise self.wrong("corpus", "`tests` of `corpus` is no mapping of names to texts", "`tests: {test: PREFIX}`")
        made = make is not None
        train, valid = (self._text(key, section.get(key), languages, made) for key in ("train", "valid"))
        texts = {key: self._text(key, prefix, languages, made) for key, prefix in tests.items()}
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
            what = "`corpus` needs either `sentencepiece-model` or a `vocab_size` of `subwords`"
            raise self.wrong("corpus", what, "`subwords: {vocab_size: 4000}`")
        given = (self._monolingual(section), None, make, model, dictionary, dict(subwords))
        return Corpus(languages, train, valid, texts, *given)

    def _text(self, key: str, prefix: Any, languages: Tuple[str, str], made: bool) -> str:
        if not isinstance(prefix, str) or not prefix:
            raise self.wrong("corpus", f"`{key}` of `corpus` is missing", f"`{key}: PREFIX`, of PREFIX.LANG")
        self.name("corpus", key)
        if made and prefix.startswith("{folder}/"):
            return "text/" + str(prefix[len("{folder}/") :])
        for language in languages:
            if not os.path.isfile(f"{prefix}.{language}"):
                what = f"`{key}: {prefix}`: {prefix}.{language} does not exist"
                raise self.wrong("corpus", what, "PREFIX of PREFIX.LANG")
        return os.path.abspath(prefix)

    def _monolingual(self, section: Dict[str, Any]) -> Optional[str]:
        given = "monolingual" in section
        return self.file("corpus", self.text(section, "monolingual", place="corpus")) if given else None

    def _prepared(self, folder: str) -> Corpus:
        root = Path(os.path.abspath(folder))
        try:
            text = (root / "prepared.txt").read_text(encoding="utf-8")
            pair = re.findall(r"^pair (\S+)-(\S+)$", text, re.MULTILINE)[0]
            tests = [line.split() for line in (root / "testsets.txt").read_text(encoding="utf-8").splitlines()]
            named = {title: str(root / "raw" / name) for name, title in tests}
        except (OSError, IndexError, ValueError) as error:
            remedy = "such a folder, or a mapping with train, valid, tests, source-lang, target-lang and subwords"
            raise self.wrong("corpus", f"{folder} was not made by prepare-*.sh ({error})", remedy) from error
        for file in ("spm.model", "dict.txt", "data-bin", f"raw/train.{pair[0]}", f"raw/valid.{pair[0]}"):
            self.file("corpus", str(root / file))
        model, dictionary = str(root / "spm.model"), str(root / "dict.txt")
        texts = (str(root / "raw/train"), str(root / "raw/valid"), named)
        return Corpus(pair, *texts, None, str(root), None, model, dictionary, {})

    def training(self, key: str, section: Dict[str, Any]) -> Training:
        every = self.whole(key, section, "every", 1, 1) if "every" in section else None
        words = self.words(key, section.get("train"))
        seed = self.whole(key, section, "seed", 0, 1)
        return Training(words, self.whole(key, section, "average", 0, 0), every, seed)

    def teacher(self, value: Any) -> Tuple[Optional[str], Optional[Training]]:
        if value is None or value in OFF:
            return None, None
        section = self.mapping("teacher", value)
        check_keys(self._path, section, ("path", "train", "average", "every", "seed"), "of `teacher`")
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
            numbers = [
                self.whole("students", {"seeds": seed}, "seeds", 0, 0) for seed in seeds if isinstance(seeds, list)
            ]
            if not numbers or len(set(numbers)) < len(numbers):
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
            training = self.training("students", section)
            students.append(Student(name, training, numbers, teacher, data == "original", starts))
        if not students:
            raise self.wrong("students", "`students` has none", "`students: {small: {train: --arch …}}`")
        return students
