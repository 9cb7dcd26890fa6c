"""The table of verbs. To look at it imports none of them."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Dict, NamedTuple, Optional, Sequence

# What Ctrl-C leaves behind, and how to go on.
SHARDS = "finished shards are kept, and the same command goes on with the others"
ANEW = "nothing is finished, and the same command begins anew"
READS = "nothing was changed"


class Verb(NamedTuple):
    """A row.

    Args:
        module: imported only when its verb is asked for. It defines `add_arguments(parser)` and `run(args) -> int`,
            the exit status
        stopped: what a stop leaves behind
        fairseq: whether it works with fairseq, which takes seconds to import and is then registered with first
    """

    help: str
    module: str
    stopped: str = ANEW
    fairseq: bool = False


VERBS: Dict[str, Verb] = {
    "doctor": Verb("check this installation and, on request, teacher files", "kd_plugin.cli.doctor", READS, True),
    "cache": Verb("ask a teacher about a corpus once and keep its answers", "kd_plugin.cli.cache", SHARDS, True),
    "cache-info": Verb("what such a cache holds; --verify: whether it is undamaged", "kd_plugin.cli.cache_info", READS),
    "vocabulary": Verb(
        "a student's dictionaries in its teacher's pieces, all or what a corpus needs",
        "kd_plugin.cli.vocabulary",
        fairseq=True,
    ),
    "decode": Verb(
        "translate a corpus with a teacher, for sequence-level distillation", "kd_plugin.cli.decode", SHARDS, True
    ),
    "import": Verb("take in translations made elsewhere: TSV, CSV or JSON lines", "kd_plugin.cli.import_translations"),
    "select": Verb("of n-best translations keep those that teach best", "kd_plugin.cli.select"),
    "score": Verb(
        "what a model, a metric without references or a program of yours thinks of translations",
        "kd_plugin.cli.score",
        SHARDS,
        True,
    ),
    "filter": Verb("drop translations that would teach wrong, by rules", "kd_plugin.cli.filter"),
    "evaluate": Verb(
        "scores, significance, speed and size of models, side by side", "kd_plugin.cli.evaluate", fairseq=True
    ),
    "export": Verb(
        "a model for use or to give away: CTranslate2, fairseq, safetensors", "kd_plugin.cli.export", fairseq=True
    ),
    "report": Verb("one HTML page of evaluations and learning curves", "kd_plugin.cli.report"),
    "path": Verb('print the directory for --user-dir "$(kd-plugin path)"', "kd_plugin.cli.path", READS),
}


def chosen_verb(arguments: Sequence[str]) -> Optional[str]:
    """The name of the verb, known or not, in what follows `kd-plugin`."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def worker_needs_fairseq() -> bool:
    """Whether this process of the command is a worker, which has the command's arguments, of a verb with fairseq.

    The command itself registers only when it has understood its arguments (kd_plugin.cli).
    """
    verb = VERBS.get(chosen_verb(sys.argv[1:]) or "")
    return multiprocessing.current_process().name != "MainProcess" and verb is not None and verb.fairseq
