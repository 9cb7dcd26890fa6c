"""The work of `kd-plugin gap`: reads, slices, scores and writes."""

import functools
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from sacrebleu.metrics import CHRF

from kd_plugin.corpus.languages import WITHOUT_SPACES, bleu_tokenizer, check_languages, family, family_of_text
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.gap.scores import Difference, measures, of_sentences
from kd_plugin.evaluation.gap.slices import Sentence, Slice, slices
from kd_plugin.evaluation.scores import Comet, check_tokenizer
from kd_plugin.files.atomic import digest_of, make_folder, write_atomically, write_json
from kd_plugin.files.locks import LOCK, Claim
from kd_plugin.files.protection import Named, check_outputs
from kd_plugin.runners.progress import progress

FORMAT, FORMAT_VERSION, JSON_NAME, TABLE_NAME = "kd_plugin gap", 1, "gap.json", "gap.md"
ALL = "all"


class Options(NamedTuple):
    """The command's options."""

    test: str
    teacher: str
    student: str
    output: str
    train: Optional[str]
    domains: Optional[str]
    source_lang: Optional[str]
    target_lang: Optional[str]
    tokenize: Optional[str]
    lowercase: bool
    bootstrap: int
    worst: int
    comet: Optional[str]
    inputs: Sequence[Named]


def gap(options: Options) -> str:
    """Writes gap.json and gap.md.

    Returns:
        the text of gap.md

    Raises:
        KDPluginError: a file cannot be read, or the files do not have equally many lines
    """
    check_languages(options.source_lang, options.target_lang)
    check_tokenizer(options.tokenize)
    names, sentences, domains = _read(options)
    output = Path(options.output)
    check_outputs(options.inputs, folders=[("--output", output)])
    _check_free(output, False)
    comet = Comet(options.comet, 0) if options.comet else None
    tokenizer = bleu_tokenizer(options.target_lang, (each.reference for each in sentences))
    source_family = family(options.source_lang) or family_of_text(each.source for each in sentences)
    training = None
    if options.train is not None:
        lines = numbered_lines(Path(options.train), "--train")
        training = (line for _, line in progress(lines, None, "counting words"))
    parts = [Slice(ALL, ALL, list(range(len(sentences))))]
    parts += slices(sentences, training, domains, source_family not in WITHOUT_SPACES, options.lowercase)
    teacher, student = [each.teacher for each in sentences], [each.student for each in sentences]
    references = [each.reference for each in sentences]
    metrics, signatures = measures(
        teacher, student, references, options.tokenize or tokenizer.name or "13a", options.lowercase
    )
    if comet is not None:
        sources = [each.source for each in sentences]
        metrics["COMET"] = of_sentences(*(comet.of_sentences(side, sources, references) for side in (teacher, student)))
        signatures["COMET"] = comet.signature
    rows = [
        {
            "kind": part.kind,
            "name": part.name,
            "sentences": len(part.rows),
            "scores": {name: _finite(m.difference(part.rows, options.bootstrap)) for name, m in metrics.items()},
        }
        for part in progress(parts, len(parts), "slices", "slice")
    ]
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "teacher": names[0],
        "student": names[1],
        "signatures": signatures,
        "slices": rows,
        "worst": _worst(sentences, options.worst, options.lowercase),
    }
    text = markdown(content)
    make_folder(output, "--output")

    identity = digest_of(options._replace(output="")._asdict())
    with Claim(output / LOCK, f"--output {output}", identity, functools.partial(_check_free, output)) as claim:
        write_atomically(output / TABLE_NAME, text.encode("utf-8"))
        write_json(output / JSON_NAME, content)
        claim.finish()
    return text


def _check_free(output: Path, begun_here: bool) -> None:
    # the table is written first: one alone, without its lock, is not this verb's unfinished work
    unfinished = begun_here or (output / LOCK).exists()
    if (output / JSON_NAME).exists() or ((output / TABLE_NAME).exists() and not unfinished):
        raise KDPluginError(f"--output {output}: already holds a comparison. Remedy: another folder, or remove it")


def _read(options: Options) -> Tuple[List[str], List[Sentence], Optional[List[str]]]:
    """The systems' names, the sentences, and the domains."""
    paths = options.test.split(",")
    if len(paths) != 2:
        raise KDPluginError(f"--test {options.test}: is not SRC,REF. Remedy: two files with a comma between them")
    given = {"--teacher": options.teacher, "--student": options.student}
    names = [value.partition("=")[0] if "=" in value else flag[2:] for flag, value in given.items()]
    files = [("--test", paths[0]), ("--test", paths[1])]
    files += [(flag, value.partition("=")[2] if "=" in value else value) for flag, value in given.items()]
    files += [("--domains", options.domains)] if options.domains else []
    columns = [[line for _, line in numbered_lines(Path(path), flag)] for flag, path in files]
    for (flag, path), lines in zip(files, columns):
        if len(lines) != len(columns[0]) or not lines:
            raise KDPluginError(
                f"{flag} {path}: {len(lines)} lines, but {len(columns[0])} in {paths[0]}. Remedy: one line per sentence"
            )
    return names, [Sentence(*row) for row in zip(*columns[:4])], columns[4] if options.domains else None


def _finite(difference: Difference) -> Dict[str, Optional[float]]:
    return {name: value if math.isfinite(value) else None for name, value in difference._asdict().items()}


def _worst(sentences: Sequence[Sentence], count: int, lowercase: bool) -> List[Dict[str, Any]]:
    """Sentences where the student's chrF is furthest below the teacher's."""
    metric = CHRF(lowercase=lowercase)
    rows = []
    for number, each in enumerate(sentences, 1):
        scores = [metric.sentence_score(text, [each.reference]).score for text in (each.teacher, each.student)]
        rows.append({"line": number, "gap": scores[1] - scores[0], **each._asdict()})
    rows.sort(key=lambda row: (row["gap"], row["line"]))
    return [row for row in rows[:count] if row["gap"] < 0]


def markdown(content: Dict[str, Any]) -> str:
    """The tables of gap.json: scores by slice, and the worst sentences."""
    metrics = list(content["signatures"])
    head = ["", "slice", "sentences"]
    for metric in metrics:
        head += [f"{metric} {content['teacher']}", content["student"], "gap", "95 %"]
    lines, kind = [head, ["---", "---", *["--:"] * (len(head) - 2)]], ""
    for row in content["slices"]:
        cells = [row["kind"] if row["kind"] != kind else "", row["name"], f"{row['sentences']:,}"]
        kind = row["kind"]
        for metric in metrics:
            score = row["scores"][metric]
            ends = "–" if score["low"] is None else f"{score['low']:+.1f} to {score['high']:+.1f}"
            cells += [f"{score['teacher']:.1f}", f"{score['student']:.1f}", f"{score['gap']:+.1f}", ends]
        lines.append(cells)
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    parts = [f"# {content['student']} against {content['teacher']}", table]
    parts += ["\n".join(f"* {name}: `{signature}`" for name, signature in content["signatures"].items())]
    if content["worst"]:
        parts += ["## Sentences where the student lags most, by chrF"]
    for row in content["worst"]:
        sides = ("source", "reference", "teacher", "student")
        parts.append(
            f"Line {row['line']:,}, {row['gap']:+.0f}\n\n" + "\n".join(f"* {side}: {row[side]}" for side in sides)
        )
    return "\n\n".join(parts) + "\n"
