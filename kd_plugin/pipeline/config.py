"""Reads the file of `kd-plugin distill`: which steps there are, with which options."""

import os
import re
from typing import Callable, Dict

from kd_plugin.files.yaml_text import Mapping, check_keys, read_settings, wrong
from kd_plugin.pipeline.reading import Reader
from kd_plugin.pipeline.schema import CACHE, DEFAULTS, EXAMPLE, NONE, OFF, ONLINE, ROUNDS, SECTIONS, TOP, Pipeline

# (verb) -> its long flags without dashes; whether each is a switch
Flags = Callable[[str], Dict[str, bool]]


def read_pipeline(path: str, flags: Flags) -> Pipeline:
    """
    Raises:
        KDPluginError: the file cannot be read, a key or value is none that it can have, or a file is missing
    """
    content = read_settings(path, TOP, ("output", "corpus", "students"), EXAMPLE)
    lines: Dict[str, int] = getattr(content, "lines", {})
    content = Mapping({**DEFAULTS, **content})
    content.lines = lines
    reader = Reader(path, lines)
    output = reader.text(content, "output")
    if re.search(r"[:,=]", os.path.abspath(output)):
        raise reader.wrong(
            "output",
            f"`output: {output}` has a colon, comma or equals sign, which fairseq splits",
            "a path without them",
        )
    if output.startswith("~"):
        raise reader.wrong("output", f"`output: {output}`: only a shell replaces ~", "the whole path")
    corpus = reader.corpus(content["corpus"])
    teacher, training = reader.teacher(content.get("teacher"))
    options = {verb: reader.options(verb, content.get(verb), flags(verb)) for verb in SECTIONS if verb != "export"}
    if teacher is None and training is None:
        options["cache"] = None if "cache" not in lines else options["cache"]
        if "http" not in (options["decode"] or ()) or options["cache"] is not None or options["init"] is not None:
            raise wrong(
                path,
                "`teacher:` is missing",
                "`teacher: {path: teacher.pt}`, or `decode: {engine: http, …}` without `cache` and `init`",
            )
    exports = {}
    if content["export"] not in OFF:
        for name, section in reader.mapping("export", content["export"]).items():
            reader.name("export", name)
            exports[name] = reader.options("export", section, flags("export")) or []
    mix = reader.mapping("mix", content.get("mix", {}))
    check_keys(path, mix, ("original",), "of `mix`")
    rounds = reader.mapping("rounds", content.get("rounds", {}))
    check_keys(path, rounds, ("count", "train"), "of `rounds`")
    taught = CACHE if options["cache"] is not None else ONLINE if teacher or training else NONE
    students = reader.students(content["students"], taught, options["init"] is not None)
    return Pipeline(
        path,
        output,
        corpus,
        teacher,
        training,
        options,
        exports,
        reader.boolean("mix", mix, "original", True),
        students,
        reader.whole("rounds", rounds, "count", 0, 0, ROUNDS),
        reader.words("rounds", rounds.get("train", "")),
        reader.whole("threads", content, "threads", 0, 0),
        reader.whole("workers", content, "workers", 0, 0),
        content,
    )
