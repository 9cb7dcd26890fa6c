"""What the file of `kd-plugin distill` can say."""

import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

EXAMPLE = "a file with `output:`, `corpus:`, `teacher:` and `students:` (see the page on distill)"
# not of one of done/'s other files
NAME = re.compile(r"(?!.*\.(?:json|lock|tmp)\Z)[A-Za-z0-9][\w.+-]{0,99}\Z", re.ASCII)
# flags of fairseq-train that the steps themselves give
OWN = "--save-dir --seed --source-lang --target-lang -s -t --teacher-cache --teacher-path --restore-file".split()
OWN += ["--finetune-from-model"]
# verbs whose options a section of the same name may give, and those that the steps themselves give
SECTIONS = {
    "decode": ("input", "path", "output", "text", "workers", "source-lang", "target-lang"),
    "score": ("output", "text", "workers"),
    "select": ("output", "text", "workers", "reference"),
    "filter": ("output", "text", "workers"),
    "cache": ("teacher-path", "cache-dir", "subset", "workers", "source-lang", "target-lang"),
    "init": ("output", "data", "source-lang", "target-lang"),
    "export": ("output", "source-lang", "target-lang"),
    "evaluate": ("output", "model", "test", "source-lang", "target-lang"),
    "gap": ("output", "test", "teacher", "student", "source-lang", "target-lang"),
    "report": ("output", "evaluation", "log", "sweep", "gap", "times"),
}
DEFAULTS: Dict[str, Any] = {
    "decode": {"beam": "5", "nbest": "5"},
    "select": {"by": "reference"},
    "filter": {},
    "cache": {"k": "16"},
    "evaluate": {},
    "gap": {},
    "report": {},
    "export": {"int8": {"format": "ctranslate2", "quantization": "int8"}},
}
TOP = ["output", "corpus", "teacher", "decode", "score", "select", "filter", "mix", "cache", "init", "students"]
TOP += ["rounds", "export", "evaluate", "gap", "report", "threads", "workers"]
SUBWORDS = {
    "vocab_size": r"\d+",
    "model_type": "unigram|bpe",
    "character_coverage": r"0?\.\d+|1(\.0)?",
    "split_digits": "true|false",
    "byte_fallback": "true|false",
    "hard_vocab_limit": "true|false",
    "normalization_rule_name": "nmt_nfkc|nmt_nfkc_cf|nfkc|nfkc_cf|identity",
}
ROUNDS = 100  # more are a mistake, whose steps would take hours to plan
OFF = ("false", "none", "no")
CACHE, ONLINE, NONE = "cache", "online", "none"

Words = List[str]


class Corpus(NamedTuple):
    """Text as PREFIX.LANG, and what segments it.

    prepared:     folder of examples/translation/prepare-*.sh, which has all of it; else None
    make:         a command that first writes the text into the folder {folder}
    subwords:     sentencepiece's options, for a model that is trained here
    """

    languages: Tuple[str, str]
    train: str
    valid: str
    tests: Dict[str, str]
    monolingual: Optional[str]
    prepared: Optional[str]
    make: Optional[Words]
    model: Optional[str]
    dictionary: Optional[str]
    subwords: Dict[str, str]


class Training(NamedTuple):
    """words: fairseq-train's arguments. average: of the last checkpoints, `every` so many updates, else by epochs;
    0: take checkpoint_best.pt. seed: a teacher's; students have several"""

    words: Words
    average: int
    every: Optional[int]
    seed: int


class Student(NamedTuple):
    """teacher: cache, online or none. original: reads the original pairs alone. init: true, it starts from
    `init`'s weights; shape: has that shape with random weights; false"""

    name: str
    training: Training
    seeds: List[int]
    teacher: str
    original: bool
    init: str


class Pipeline(NamedTuple):
    """The file's content. options: of each verb, as words; None: no such step. exports: by name"""

    path: str
    output: str
    corpus: Corpus
    teacher: Optional[str]
    teacher_training: Optional[Training]
    options: Dict[str, Optional[Words]]
    exports: Dict[str, Words]
    original: bool
    students: List[Student]
    rounds: int
    round_words: Words
    threads: int
    workers: int
    content: Dict[str, Any]
