"""The flags that name a teacher, `--teacher-...`."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from kd_plugin.corpus.words import AUTO, HELP, WORD_STARTS
from kd_plugin.teachers.kinds import own_flags
from kd_plugin.teachers.online import TEACHER_DTYPES
from kd_plugin.teachers.vocabulary import MISSING_SYMBOLS, REFUSE


@dataclass
class SharedTeacherFlags(FairseqDataclass):
    """The flags that name a teacher of any kind."""

    teacher_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "the teacher's checkpoint, or a Hugging Face model folder; several, separated by colons, form an "
            "ensemble (write a colon in a path as \\: or use a JSON list). The architecture comes from the checkpoint"
        },
    )
    teacher_cache: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with a teacher's answers for the training data, written by kd-plugin cache; replaces "
            "--teacher-path"
        },
    )
    # Any: a string on the command line, a list or mapping in YAML
    teacher_weights: Any = field(
        default=None,
        metadata={
            "help": "comma-separated weights, one per teacher of an ensemble, normalised to sum to 1: the student "
            "learns from the weighted mixture of the teachers' probabilities. Default: equal weights"
        },
    )
    teacher_overrides: Any = field(
        default="{}",
        metadata={
            "help": "JSON dictionary of fields to override in the teacher's own configuration, e.g. '{\"data\": "
            '"DATA_BIN"}\' for the folder of its dictionaries'
        },
    )
    teacher_user_dir: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with code that registers the teacher's architecture or task, like fairseq's --user-dir; "
            "several as in --teacher-path. The code runs: name only code that you trust"
        },
    )
    teacher_dtype: ChoiceEnum(["auto", *TEACHER_DTYPES]) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={"help": "dtype of the teacher; auto: the student's on a GPU, fp32 on a CPU"},
    )
    teacher_sha256: Optional[str] = field(
        default=None,
        metadata={
            "help": "refuse a teacher, or a cache by a teacher, with any other sha256 than these, separated by colons "
            "(kd-plugin doctor --teacher PATH prints them)"
        },
    )
    teacher_missing_symbols: ChoiceEnum(MISSING_SYMBOLS) = field(  # type: ignore[valid-type]
        default=REFUSE,
        metadata={
            "help": "what to do if the student's dictionaries have symbols that the teacher lacks; ignore: the teacher "
            "reads them as its unknown symbol and gives them no probability"
        },
    )


@dataclass
class TeacherFlags(*own_flags(), SharedTeacherFlags):  # type: ignore[misc]
    """The flags that name a translation teacher."""

    teacher_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "the teacher's checkpoint, or a Hugging Face model folder (MarianMT and OPUS-MT, M2M100 and NLLB, "
            "mBART, T5 and MADLAD); several, separated by colons, form an ensemble (write a colon in a path as \\: or "
            "use a JSON list). The architecture comes from the checkpoint"
        },
    )
    teacher_source_lang: Optional[str] = field(
        default=None,
        metadata={
            "help": "the source language, by the name that a multilingual Hugging Face teacher uses: eng_Latn for "
            "NLLB, en for M2M100, en_XX for mBART"
        },
    )
    teacher_target_lang: Optional[str] = field(
        default=None,
        metadata={"help": "the target language, named likewise; also deu for >>deu<<, de for MADLAD's <2de>"},
    )


@dataclass
class LabelTeacherFlags(SharedTeacherFlags):
    """The flags that name a teacher of labels."""

    teacher_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "the teacher's checkpoint with a classification head, or a Hugging Face folder with a model for "
            "sequence or token classification; several, separated by colons, form an ensemble (write a colon in a path "
            "as \\: or use a JSON list)"
        },
    )
    teacher_labels: Any = field(
        default=None,
        metadata={
            "help": "the names of the teacher's outputs in their order, as the student's label/dict.txt calls them, "
            "separated by commas (or a JSON list): for teachers that do not name them, or name them otherwise"
        },
    )
    teacher_head: Optional[str] = field(
        default=None,
        metadata={
            "help": "name of a fairseq teacher's classification head; default: --classification-head-name, or its only "
            "one"
        },
    )
    word_start: ChoiceEnum(WORD_STARTS) = field(default=AUTO, metadata={"help": HELP})  # type: ignore[valid-type]
    kd_unlabelled: Optional[str] = field(
        default=None,
        metadata={
            "help": "a second folder, whose training sentences have no labels and learn from the teacher alone: alpha "
            "is 0 for them. With the same input0/dict.txt"
        },
    )
