"""What each step of `kd-plugin distill` took: Snakemake's benchmark files, and energy where it was counted."""

import csv
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.table import NONE, Table
from kd_plugin.files.atomic import read_json

REMEDY = "Remedy: the folder times/ of kd-plugin distill"


class Spent(NamedTuple):
    """seconds, cpu: of the run that finished the step. megabytes: its largest resident memory. None: not measured"""

    step: str
    seconds: float
    cpu: Optional[float]
    megabytes: Optional[float]
    joules: Optional[float]


def read_times(folder: str) -> List[Spent]:
    """The steps in the order in which they ended.

    Raises:
        KDPluginError: the folder or a file in it cannot be read
    """
    try:
        files = sorted(Path(folder).glob("*.tsv"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [_read(path) for path in files]
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise KDPluginError(f"--times {folder}: cannot be read ({error!r}). {REMEDY}") from error


def _read(path: Path) -> Spent:
    beside = path.with_suffix(".json")
    kept = read_json(beside, REMEDY) if beside.exists() else {}
    row = kept.get("row")  # of the run that made the step's product; Snakemake's is of one that found it done
    if row is None:
        with open(path, encoding="utf-8", newline="") as file:
            row = next(csv.DictReader(file, delimiter="\t"))
    joules = kept.get("joules")
    # Snakemake looks at a process every few seconds, and writes 0 or NA for one that ended before
    cpu, memory = (float(row[key]) if row[key] not in ("", "-", "NA") else 0.0 for key in ("cpu_time", "max_rss"))
    return Spent(path.stem, float(row["s"]), cpu or None, memory or None, joules)


def time_table(spent: List[Spent]) -> Table:
    rows: List[Dict[str, str]] = [
        {
            "step": one.step,
            "seconds": f"{one.seconds:,.0f}",
            "CPU seconds": NONE if one.cpu is None else f"{one.cpu:,.0f}",
            "MB": NONE if one.megabytes is None else f"{one.megabytes:,.0f}",
            "kJ": "not measured" if one.joules is None else f"{one.joules / 1000:,.1f}",
        }
        for one in spent
    ]
    caption = f"{sum(one.seconds for one in spent):,.0f} seconds in all; of an interrupted step, its last run."
    notes = ["MB: the largest resident memory. kJ: of the whole processor, other work at that time included."]
    return Table("Steps", caption, {"": rows}, notes)
