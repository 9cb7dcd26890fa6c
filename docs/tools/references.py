"""Tables of every flag and option, read from the parsers themselves, so that they cannot differ from the code.

The site has them; `python docs/tools/references.py NAME` prints one, such as commands or training-flags.
"""

import argparse
import dataclasses
import re
import sys
from typing import Callable, Dict, Iterable, List

TITLES = (
    "The teacher (task)",
    "fairseq's own, of its task `translation`",
    "The loss (criterion)",
    "fairseq's own, of its criterion `label_smoothed_cross_entropy`",
)
# Characters that Markdown would interpret; escaped in help texts.
SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~$])")


def escape(text: str) -> str:
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """As inline code; a pipe would split a table cell."""
    return f"`{text.replace(' | ', ' or ')}`" if text else ""


def table(rows: Iterable[List[str]], *head: str) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def flags_of(config: type) -> argparse.ArgumentParser:
    """A parser of the flags that fairseq makes of a configuration dataclass."""
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    gen_parser_from_dataclass(parser, config())
    return parser


def flag_row(action: argparse.Action) -> List[str]:
    """The row of a flag of fairseq-train, whose help does not state its default."""
    names = ", ".join(map(code, action.option_strings or [action.dest]))
    text = escape(action.help or "")
    if action.choices:
        text += ": " + ", ".join(code(str(choice)) for choice in action.choices)
    default = "" if action.default in (None, argparse.SUPPRESS) else str(action.default)
    if isinstance(action.default, bool):
        default = "on" if action.default else "off"
    return [names, code(default), text]


def training_flags() -> str:
    """Every flag of task and criterion."""
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
    from fairseq.tasks.translation import TranslationConfig

    import kd_plugin  # noqa: F401  registers with fairseq
    from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig
    from kd_plugin.tasks.distillation_translation import DistillationTranslationConfig

    sections = {}
    for config, stock, titles in (
        (DistillationTranslationConfig, TranslationConfig, TITLES[:2]),
        (KDLabelSmoothedCrossEntropyCriterionConfig, LabelSmoothedCrossEntropyCriterionConfig, TITLES[2:]),
    ):
        inherited = {field.name for field in dataclasses.fields(stock)}
        parser = flags_of(config)
        rows: Dict[str, List[List[str]]] = {title: [] for title in titles}
        for action in parser._actions:
            rows[titles[action.dest in inherited]].append(flag_row(action))
        sections.update({title: table(found, "flag", "default", "meaning") for title, found in rows.items()})
    return "\n\n".join(f"## {title}\n\n{sections[title]}" for title in (TITLES[0], TITLES[2], TITLES[3], TITLES[1]))


def label_flags() -> str:
    """Every flag of the tasks and criterions of students that label, except those of the section before."""
    import kd_plugin  # noqa: F401  registers with fairseq
    from kd_plugin.criterions.flags import DistillationFlags
    from kd_plugin.criterions.kd_sentence_prediction import KDSentencePredictionConfig
    from kd_plugin.criterions.kd_sequence_tagging import KDSequenceTaggingConfig
    from kd_plugin.tasks.distillation_sentence_prediction import DistillationSentencePredictionConfig
    from kd_plugin.tasks.distillation_sequence_tagging import DistillationSequenceTaggingConfig

    shared = {field.name for field in dataclasses.fields(DistillationFlags)}
    parts = []
    for title, config in (
        ("The task `distillation_sentence_prediction`", DistillationSentencePredictionConfig),
        ("The task `distillation_sequence_tagging`", DistillationSequenceTaggingConfig),
        ("The criterion `kd_sentence_prediction`", KDSentencePredictionConfig),
        ("The criterion `kd_sequence_tagging`", KDSequenceTaggingConfig),
    ):
        rows = [flag_row(action) for action in flags_of(config)._actions if action.dest not in shared]
        parts.append(f"### {title}\n\n{table(rows, 'flag', 'default', 'meaning')}")
    return "\n\n".join(parts)


def option_row(parser: argparse.ArgumentParser, action: argparse.Action) -> List[str]:
    formatter = parser._get_formatter()
    if not action.option_strings:
        value = formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
        return [code(value), escape(formatter._expand_help(action))]
    default = formatter._get_default_metavar_for_optional(action)
    value = "" if action.nargs == 0 else formatter._format_args(action, default)
    names = ", ".join(code(f"{name} {value}".strip()) for name in action.option_strings)
    text = escape(formatter._expand_help(action)) if action.help else ""
    return [names + (" (required)" if action.required else ""), text]


def verb_parser(verb: str) -> argparse.ArgumentParser:
    from kd_plugin.cli import build_parser

    parser = build_parser(verb)
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    chosen: argparse.ArgumentParser = verbs.choices[verb]
    return chosen


def shown_actions(parser: argparse.ArgumentParser) -> List[argparse.Action]:
    """All but --help and the options kept only for old command lines."""
    return [action for action in parser._actions if action.dest != "help" and action.help is not argparse.SUPPRESS]


def commands() -> str:
    """Every option of every verb of kd-plugin."""
    from kd_plugin.cli.verbs import VERBS

    parts = []
    for verb, row in VERBS.items():
        parser = verb_parser(verb)
        rows = [option_row(parser, action) for action in shown_actions(parser)]
        what = row.help[:1].upper() + escape(row.help)[1:]
        text = f"## kd-plugin {verb}\n\n{what}. After Ctrl-C or SIGTERM: {row.stopped}."
        parts.append(text + ("\n\n" + table(rows, "option", "meaning") if rows else "\n\nIt takes no options."))
    return "\n\n".join(parts)


def student_architectures() -> str:
    """The named student sizes."""
    import kd_plugin  # noqa: F401  registers with fairseq
    from kd_plugin.models.student_transformer import STUDENT_ARCHITECTURES

    rows = [
        [
            code(name),
            str(sizes["encoder_embed_dim"]),
            str(sizes["encoder_ffn_embed_dim"]),
            str(sizes["encoder_attention_heads"]),
            f"{sizes['encoder_layers']} + {sizes['decoder_layers']}",
        ]
        for name, sizes in STUDENT_ARCHITECTURES.items()
    ]
    return table(rows, "`--arch`", "width", "feed-forward", "heads", "layers")


def simple_students() -> str:
    """The flags of the students that classify or tag."""
    from fairseq.models import MODEL_DATACLASS_REGISTRY

    import kd_plugin  # noqa: F401  registers with fairseq

    rows: Dict[str, List[str]] = {}
    for name in ("text_cnn", "bilstm", "bag_of_embeddings"):
        for action in flags_of(MODEL_DATACLASS_REGISTRY[name])._actions:
            flag, default, text = flag_row(action)
            if action.dest == "max_positions":  # the task's
                continue
            rows.setdefault(flag, [flag, default, text, ""])
            rows[flag][3] += f"{', ' * bool(rows[flag][3])}{code(name)}"
    return table([[row[0], row[1], row[3], row[2]] for row in rows.values()], "flag", "default", "of", "meaning")


WRITERS: Dict[str, Callable[[], str]] = {
    "training-flags": training_flags,
    "label-flags": label_flags,
    "commands": commands,
    "student-architectures": student_architectures,
    "simple-students": simple_students,
}


if __name__ == "__main__":
    print(WRITERS[sys.argv[1]]())
