"""Checks whether the installation has what distillation needs: `kd-plugin doctor` without teacher files."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.version import __version__

OK, WARN, FAIL = "ok", "warn", "FAIL"

# the distributions and versions that this package is tested with
TESTED_FAIRSEQ = ("fairseq:0.12.2", "fairseq-fixed:0.12.3.1")
REQUIRED_PACKAGES = ("numpy", "sentencepiece", "sacrebleu", "omegaconf", "hydra-core")
# optional packages, and the extra that installs each; none: PyTorch for CUDA brings it
OPTIONAL_PACKAGES = {
    "numba": "cpu",
    "triton": "",
    "ctranslate2": "export",
    "safetensors": "export",
    "transformers": "hf",
    "vl-convert-python": "report",
    "Jinja2": "report",
    "optuna": "sweep",
    "snakemake": "pipeline",
    "subword-nmt": "published",
    "sacremoses": "published",
    "httpx": "http",
    "tenacity": "http",
    "ray": "ray",
    "unbabel-comet": "comet",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "scikit-learn": "classification",
    "seqeval": "classification",
    "tensorboard": "tensorboard",
    "num2words": "quickstart",
    "Babel": "quickstart",
}
MISSING = "not installed"


@dataclass
class Check:
    """One line of the report; `remedy` says what to do if the status is not ok."""

    section: str
    name: str
    value: str
    status: str = OK
    remedy: str = ""

    @property
    def mark(self) -> str:
        """The status in the table, where an optional package that is missing is neither good nor bad."""
        return "-" if self.status == OK and self.value.startswith(MISSING) else self.status


def table(checks: List[Check]) -> str:
    """The report for a terminal, one check per line, grouped by section."""
    width = max(len(check.name) for check in checks)
    lines: List[str] = []
    section = None
    for check in checks:
        if check.section != section:
            section = check.section
            lines += ["", section] if lines else [section]
        lines.append(f"  {check.mark:4}  {check.name:{width}}  {check.value}")
        if check.remedy:
            lines.append(f"  {'':4}  {'':{width}}  → {check.remedy}")
    return "\n".join(lines)


def environment_checks() -> List[Check]:
    """Checks the interpreter, packages, devices, and whether this package owns its names in fairseq."""
    return [
        Check("system", "Python", platform.python_version()),
        Check("system", "OS", platform.platform()),
        *package_checks(),
        *device_checks(),
        *registration_checks(),
    ]


def package_checks() -> List[Check]:
    import torch

    built_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return [
        Check("packages", "kd_plugin", f"{__version__} ({os.path.dirname(os.path.abspath(__file__))})"),
        Check("packages", "torch", f"{torch.__version__} ({built_for})"),
        weights_only_check(),
        fairseq_check(),
        *[package_check("packages", name, required=True) for name in REQUIRED_PACKAGES],
        *[package_check("optional packages", name, False, extra) for name, extra in OPTIONAL_PACKAGES.items()],
    ]


def weights_only_check() -> Check:
    from kd_plugin.compat import TORCH_VERSION, TRUSTED_TORCH

    if TORCH_VERSION >= TRUSTED_TORCH:
        return Check("packages", "weights_only", "trustworthy: runs no code from a checkpoint")
    value = f"not trustworthy below torch {'.'.join(map(str, TRUSTED_TORCH))} (CVE-2025-32434, CVE-2026-24747)"
    remedy = "upgrade torch; until then read only checkpoints that you made yourself or whose hash you pin"
    return Check("packages", "weights_only", value, WARN, remedy)


def installed_version(distribution: str) -> Optional[str]:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def package_check(section: str, name: str, required: bool, extra: str = "") -> Check:
    """extra: the one that installs it"""
    found = installed_version(name)
    if found is not None or not required:
        return Check(section, name, found or MISSING + (f" (extra {extra})" if extra else ""))
    return Check(section, name, MISSING, FAIL, f"pip install {name}")


def fairseq_check() -> Check:
    from kd_plugin.compat import fairseq_distribution, require_fairseq

    try:
        require_fairseq()
    except KDPluginError as error:
        return Check("packages", "fairseq", MISSING, FAIL, str(error))
    import fairseq

    value = f"{fairseq_distribution()} ({os.path.dirname(os.path.abspath(fairseq.__file__))})"
    if installed_version("fairseq") and installed_version("fairseq-fixed"):
        remedy = "they overwrite each other's files: uninstall both, then install one"
        return Check("packages", "fairseq", "both fairseq and fairseq-fixed are installed", FAIL, remedy)
    if fairseq_distribution() not in TESTED_FAIRSEQ:
        remedy = f"not among the tested ones ({', '.join(TESTED_FAIRSEQ)}): run scripts/test.sh on it"
        return Check("packages", "fairseq", value, WARN, remedy)
    return Check("packages", "fairseq", value)


def device_checks() -> List[Check]:
    import torch

    section = "devices"
    if not torch.cuda.is_available():
        return [Check(section, "GPU", "none"), Check(section, "bf16", "no GPU; slow on a CPU, so stay with fp32")]
    checks = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        checks.append(Check(section, f"GPU {index}", f"{gpu.name}, {memory}, capability {gpu.major}.{gpu.minor}"))
    checks.append(Check(section, "bf16", "supported" if torch.cuda.is_bf16_supported() else "not supported"))
    return checks


def registration_checks() -> List[Check]:
    """Checks who owns our names: fairseq silently ignores a duplicate task, and forks may have our criterion's name."""
    from kd_plugin.compat import has_fairseq

    if not has_fairseq():
        return []
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    import kd_plugin  # noqa: F401  registers

    checks = []
    for kind, name, registry in (
        ("task", "distillation_translation", TASK_REGISTRY),
        ("criterion", "kd_label_smoothed_cross_entropy", CRITERION_REGISTRY),
    ):
        owner = getattr(registry.get(name), "__module__", None)
        if owner is not None and owner.split(".")[0] == "kd_plugin":
            checks.append(Check("registered names", kind, name))
        else:
            remedy = "another package or fairseq fork registers this name first: remove it from this environment"
            checks.append(Check("registered names", kind, f"{name} belongs to {owner}", FAIL, remedy))
    return checks


def machine() -> Dict[str, Any]:
    """The machine's description in an evaluation."""
    import torch

    cpu = platform.processor() or platform.machine()
    try:
        names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        cpu = names[0] if names else cpu
    except OSError:  # not Linux
        pass
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu}


def versions() -> Dict[str, str]:
    """The versions of the packages that affect an evaluation."""
    from kd_plugin.compat import fairseq_distribution

    fairseq, _, fairseq_version = fairseq_distribution().partition(":")
    known = {"kd_plugin": __version__, fairseq: fairseq_version, "python": platform.python_version()}
    others = {name: installed_version(name) for name in ("torch", "ctranslate2", "sacrebleu", "sentencepiece")}
    return {**known, **{name: found for name, found in others.items() if found is not None}}
