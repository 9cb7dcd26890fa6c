"""The table of verbs. Reading it imports none of them."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Dict, NamedTuple, Optional, Sequence

# What Ctrl-C leaves behind, and how to continue.
SHARDS = "finished shards are kept, and the same command continues with the others"
ANEW = "nothing is finished, and the same command starts from the beginning"
READS = "nothing was changed"


class Verb(NamedTuple):
    """A row.

    Args:
        module: imported only when its verb is asked for. It defines `add_arguments(parser)` and `run(args) -> int`,
            the exit status
        stopped: the state that an interruption leaves, and how to continue
        fairseq: whether it uses fairseq, which takes seconds to import; the plugin is then registered first
    """

    help: str
    module: str
    stopped: str = ANEW
    fairseq: bool = False


VERBS: Dict[str, Verb] = {
    "doctor": Verb("check this installation and, on request, teacher files", "kd_plugin.cli.doctor", READS, True),
    "cache": Verb("ask a teacher about a corpus once and keep its answers", "kd_plugin.cli.cache", SHARDS, True),
    "cache-info": Verb(
        "show what a cache contains; --verify: check that it is intact", "kd_plugin.cli.cache_info", READS
    ),
    "prepare-tagging": Verb(
        "prepare data for a student that labels words, from CoNLL column files",
        "kd_plugin.cli.prepare_tagging",
        fairseq=True,
    ),
    "init": Verb("make a student that starts from its teacher's weights", "kd_plugin.cli.init", fairseq=True),
    "vocabulary": Verb(
        "make a student's dictionaries from its teacher's pieces: all, or those that a corpus needs",
        "kd_plugin.cli.vocabulary",
        fairseq=True,
    ),
    "decode": Verb(
        "translate a corpus with a teacher, for sequence-level distillation", "kd_plugin.cli.decode", SHARDS, True
    ),
    "import": Verb("import translations made elsewhere: TSV, CSV or JSON lines", "kd_plugin.cli.import_translations"),
    "select": Verb(
        "keep the best of each sentence's translations: by reference, score or agreement", "kd_plugin.cli.select"
    ),
    "score": Verb(
        "score translations with a model, a reference-free metric or your own program",
        "kd_plugin.cli.score",
        SHARDS,
        True,
    ),
    "filter": Verb("drop translations that would mislead a student, by rules", "kd_plugin.cli.filter"),
    "evaluate": Verb("compare models: scores, significance, speed and size", "kd_plugin.cli.evaluate", fairseq=True),
    "gap": Verb("show where a student lags its teacher: scores by slices of a test set", "kd_plugin.cli.gap"),
    "evaluate-classifier": Verb(
        "compare models that classify or tag: scores, significance, speed and size",
        "kd_plugin.cli.evaluate_classifier",
        fairseq=True,
    ),
    "export": Verb(
        "convert a model to use or to share it: CTranslate2, fairseq, safetensors, ONNX",
        "kd_plugin.cli.export",
        fairseq=True,
    ),
    "sweep": Verb(
        "choose training flags by experiment", "kd_plugin.cli.sweep", "the same command continues", fairseq=True
    ),
    "distill": Verb(
        "run everything from corpus to report, as described in one YAML file",
        "kd_plugin.cli.distill",
        "finished steps are kept, and the same command continues",
        fairseq=True,
    ),
    "report": Verb("write one HTML page of evaluations and learning curves", "kd_plugin.cli.report"),
    "path": Verb('print the directory for --user-dir "$(kd-plugin path)"', "kd_plugin.cli.path", READS),
}


def chosen_verb(arguments: Sequence[str]) -> Optional[str]:
    """The name of the verb, known or not, in the words after `kd-plugin`."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def worker_needs_fairseq() -> bool:
    """Whether this process is a worker of a verb with fairseq; workers have the command's arguments.

    The command itself registers only after parsing its arguments (kd_plugin.cli).
    """
    verb = VERBS.get(chosen_verb(sys.argv[1:]) or "")
    return multiprocessing.current_process().name != "MainProcess" and verb is not None and verb.fairseq
