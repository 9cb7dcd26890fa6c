"""Renders evaluations and training logs as one HTML page that needs no network."""

import base64
import contextlib
import functools
import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.results import JSON_NAME, read_evaluation
from kd_plugin.evaluation.table import NONE, Best, score_table, size_table
from kd_plugin.evaluation.training_logs import read_runs
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import Named, check_outputs, write_output
from kd_plugin.files.user_cache import kept
from kd_plugin.report.charts import score_figure, speed_figures
from kd_plugin.report.gaps import gap_figure, gap_table, read_gap_results
from kd_plugin.report.learning import learning_figures, run_table
from kd_plugin.report.sweeps import read_sweep_results, seeds_table, sweep_figures, sweep_table
from kd_plugin.report.times import read_times, time_table
from kd_plugin.version import __version__

try:
    import jinja2
    import vl_convert
    from markupsafe import Markup
except ImportError as error:
    raise KDPluginError(f"report: {error}. Remedy: pip install 'kd-plugin[report]'") from error

TEMPLATES = Path(__file__).parent / "templates"

# characters that HTML forbids or that would let a name reorder the surrounding text
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def write_report(
    output: Path,
    title: str,
    evaluations: Sequence[str],
    logs: Sequence[str],
    sweeps: Sequence[str],
    gaps: Sequence[str],
    inputs: Sequence[Named],
    times: Optional[str] = None,
) -> str:
    """Writes the page after reading all input; the same input gives the same page.

    Args:
        evaluations: folders or JSON files of kd-plugin evaluate
        logs: NAME=FILE of fairseq-train
        sweeps, gaps: folders or JSON files of kd-plugin sweep and kd-plugin gap
        inputs: all inputs by flag, which are never overwritten
        times: folder with the times of kd-plugin distill's steps

    Returns:
        a one-line summary
    """
    if not (evaluations or logs or sweeps or gaps):
        raise KDPluginError(
            "report: nothing to report. Remedy: --evaluation PATH, --log NAME=FILE, --sweep PATH or --gap PATH"
        )
    job = digest_of([title, list(evaluations), list(logs), *map(list, filter(None, (sweeps, gaps, times)))])
    made = functools.partial(_is_page_of, job)
    folders = (("--evaluation", evaluations, JSON_NAME), ("--sweep", sweeps, "sweep.json"), ("--gap", gaps, "gap.json"))
    inside = [(flag, [str(Path(path) / name) for path in paths]) for flag, paths, name in folders]
    check_outputs([*inputs, *inside], files=[("--output", output)], made=made)
    found, runs = [read_evaluation(argument) for argument in evaluations], read_runs(logs)
    swept, lagging = [read_sweep_results(path) for path in sweeps], [read_gap_results(path) for path in gaps]
    if not output.absolute().parent.is_dir():
        raise KDPluginError(f"--output {output}: its folder does not exist. Remedy: FILE.html in an existing folder")
    spent = read_times(times) if times else []
    content = page(
        job=job, title=title, version=__version__, evaluations=found, runs=runs, sweeps=swept, gaps=lagging, spent=spent
    )
    write_output(output, content, "--output", made)
    parts: Dict[str, Sequence[Any]] = {"evaluation": found, "run": runs, "sweep": swept, "gap": lagging}
    counts = [f"{len(some)} {name}" + "s" * (len(some) > 1) for name, some in parts.items() if some]
    return f"{output}: {', '.join(counts)}, {len(content):,} bytes"


def _is_page_of(job: str, path: Path) -> bool:
    """Whether a file is a page that this job has written, according to its head."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return not path.is_symlink() and f'content="{job}"'.encode() in file.read(1000)
    return False


def page(**content: Any) -> bytes:
    """The bytes of the page. content: see page.html.

    The content security policy lets the browser load nothing and send nothing; it runs only the script and applies
    only the style with these two hashes, whatever names occur in the page. Vega would compile its expressions with
    `new Function`; its interpreter (`ast` in page.js) walks them instead, so `unsafe-eval` stays forbidden. Vega styles
    through the DOM, which the policy does not restrict, so `unsafe-inline` does too. The charts' data are JSON blocks,
    which browsers do not run.
    """
    style, own = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    # Vega, Vega-Lite and Vega-Embed bundled, about 900 kB, followed by the page's own few lines
    name, entry = f"vega-embed-{version('vl-convert-python')}.js", "window.vegaEmbed = vegaEmbed;"
    script = kept(name, lambda: vl_convert.javascript_bundle(entry)) + own
    environment = jinja2.Environment(autoescape=True, finalize=_shown, undefined=jinja2.StrictUndefined)
    environment.loader = jinja2.FileSystemLoader(str(TEMPLATES))
    environment.trim_blocks = environment.lstrip_blocks = True
    drawn = (speed_figures, score_figure, learning_figures, sweep_figures, gap_figure)
    for function in (*drawn, score_table, size_table, run_table, sweep_table, seeds_table, gap_table, time_table):
        environment.globals[function.__name__] = function
    environment.filters.update(json=_json, hash=_hash, line=_in_a_line)
    rendered = environment.get_template("page.html").render(style=Markup(style), script=Markup(script), **content)
    return rendered.encode("utf-8")


def _hash(content: str) -> Markup:
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'")


def _in_a_line(values: Dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _shown(value: Any) -> Any:
    """Text from files, without characters that cannot be shown; jinja2 escapes it."""
    if isinstance(value, Best):
        return Markup("<b>{}</b>").format(value)
    return value if isinstance(value, Markup) else NONE if value is None else CONTROL.sub("\ufffd", str(value))


def _json(spec: Dict[str, Any]) -> Markup:
    """JSON in which no name can close the surrounding script element."""
    text = CONTROL.sub("\ufffd", json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    return Markup(text.replace("<", "\\u003c"))
