"""All package metadata; pyproject.toml only names the build system and configures the tools."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# Parsed, not imported: importing the package needs torch and fairseq, which a build does not have.
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "kd_plugin" / "version.py").read_text(encoding="utf-8")).group(
    1
)

# The page of the repository that builds a release, known only to its workflow (GitHub Actions sets both).
REPOSITORY = "/".join(filter(None, map(os.environ.get, ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"))))
VIEW = f"{REPOSITORY}/blob/v{VERSION}"


def project_urls() -> "dict[str, str]":
    if not REPOSITORY:
        return {}
    owner, _, name = os.environ["GITHUB_REPOSITORY"].partition("/")
    return {
        "Documentation": os.environ.get("KD_SITE_URL") or f"https://{owner}.github.io/{name}/",
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Changelog": f"{VIEW}/CHANGELOG.md",
    }


def readme() -> str:
    """With whole addresses where they are known: PyPI shows the page without the files that it links to."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    if not REPOSITORY:
        return text
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{VIEW.replace('/blob/', '/raw/')}/", text)
    text = re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{VIEW}/", text)
    return re.sub(r"(?m)^(\[[^\]]+\]: )(?!https?:)", rf"\g<1>{VIEW}/", text)


REPORT = [
    "vl-convert-python>=1.8",  # kd-plugin report: Vega-Lite charts, all JavaScript in one file, without a download
    "Jinja2>=3.0",  # the same: the page, with every name escaped
]

# kd-plugin export --format onnx, and evaluate-classifier for what it wrote
ONNX = [
    "onnx>=1.14",  # torch writes the file with it
    "onnxruntime>=1.15",  # runs it: the check that it is the same model, and its speed
]

# kd-plugin evaluate-classifier
CLASSIFICATION = [
    "scikit-learn>=1.0",  # accuracy, F1 and Matthews' correlation; fairseq's sentence_prediction requires it anyway
    "scipy>=1.5",  # correlations of numbers; the same
]

HTTP = [
    "httpx>=0.24,<1",  # kd-plugin decode --engine http: many simultaneous requests over persistent connections
    "sniffio",  # httpx looks for it a dozen times per request; not finding it takes longer than sending the request
    "tenacity>=8.2",  # the same: requests that are repeated, with growing delays
    "Babel>=2.12",  # the same: English names of languages, for the prompt
]

PUBLISHED = [
    "subword-nmt>=0.3.8",  # byte-pair encoding as the published models have it
    "sacremoses>=0.0.53",  # Moses' normalisation and tokens for further captions
]

# kd-plugin distill: steps in order and in parallel, on clusters too, and which of them an edited option or file repeats
PIPELINE = [
    'snakemake>=8,<10; python_version >= "3.11"',
    'snakemake>=7.32,<8; python_version < "3.11"',  # the last series for these
    'pulp<2.8; python_version < "3.11"',  # which calls what later versions renamed
]

setup(
    name="kd-plugin",
    version=VERSION,
    description="Knowledge distillation of translation models in plain fairseq-train, as a --user-dir plugin",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="kd_plugin authors",
    project_urls=project_urls(),
    license="MIT",
    license_files=["LICENSE"],
    keywords="fairseq knowledge distillation machine translation nmt",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.8",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["kd_plugin", "kd_plugin.*"]),
    package_data={"kd_plugin": ["py.typed", "report/templates/*", "pipeline/Snakefile"]},
    zip_safe=False,  # --user-dir needs a real directory
    python_requires=">=3.8",
    install_requires=[
        "torch>=1.13",  # models, losses and the checkpoints themselves
        "numpy",  # fairseq's batches and the arrays inside its checkpoints
        "sentencepiece",  # the subword models that teachers and students share
        "regex",  # letters with their marks, in any script; sacrebleu and fairseq require it anyway
        "tqdm",  # progress bars like fairseq's
        # the scores in every table, with a signature; select counts n-grams once through methods private in 2.x
        "sacrebleu>=2.0,<3",
    ],
    extras_require={
        # An extra, because a working fairseq is often a fork or a checkout that pip must not replace.
        "fairseq": [
            'fairseq==0.12.2; python_version < "3.11"',  # the last official release; fails to import on 3.11
            'numpy<1.24; python_version < "3.11"',  # that release uses np.float, which numpy 1.24 removed
            'fairseq-fixed==0.12.3.1; python_version >= "3.11"',  # upstream main with fixed dataclasses
        ],
        "tensorboard": [
            "tensorboard>=2.9",  # fairseq's --tensorboard-logdir
            "six",  # torch 1.13's writer imports it without requiring it
        ],
        "quickstart": [
            "num2words>=0.5.12",  # numbers written out in English and German
            "Babel>=2.12",  # dates, times, prices and measures in both languages
            *REPORT,  # its last step
        ],
        "report": REPORT,
        "cpu": [
            'accelerate>=0.26; python_version >= "3.9"',  # transformers' trainer, which scripts/train_marian.py uses
            "numba>=0.57",  # the loss on CPUs in compiled loops: three to five times as fast as PyTorch's operations
        ],
        "ray": [
            "ray[data]>=2.9",  # --runner ray: the shards of kd-plugin cache and decode on a cluster, through Ray Data
        ],
        "export": [
            "ctranslate2>=4.0",  # kd-plugin export and decode: the students' fast engine on CPUs
            "safetensors>=0.4",  # kd-plugin export --format safetensors
        ],
        "hf": [
            "transformers>=4.40",  # teachers in Hugging Face folders
            "safetensors>=0.4",  # their weights, in a format that cannot contain programs
            "protobuf",  # kd-plugin vocabulary: removing pieces from a sentencepiece model
        ],
        "comet": [
            "unbabel-comet>=2.2",  # evaluate --comet, score --metric comet-kiwi
            "transformers>=4.40",  # score --metric metricx, which is an mT5
            "sentencepiece",  # mT5's tokenizer
        ],
        "http": HTTP,
        # examples/translation/published-format.sh: Multi30k's published text is in these tokens and subwords
        "published": PUBLISHED,
        "sweep": [
            "optuna>=3.0",  # kd-plugin sweep: proposals, successive halving, and a study that survives interruptions
        ],
        "pipeline": PIPELINE,
        "onnx": ONNX,
        "classification": [
            *CLASSIFICATION,
            # entity F1 as conlleval counts. Its only release is source code that needs setuptools_scm<8 to build:
            # PIP_CONSTRAINT names a file with that line
            "seqeval>=1.2.2",
        ],
        "bench": [
            "matplotlib>=3.5",  # the plots of scripts/bench_*.py
        ],
        # the site; its tools need Python 3.9, and nothing else needs them
        "docs": [
            'mkdocs>=1.6,<2; python_version >= "3.9"',  # Markdown pages to a site, with checked links
            'mkdocs-material>=9.5; python_version >= "3.9"',  # its theme: search from disk, light and dark
            'mkdocstrings[python]>=0.25; python_version >= "3.9"',  # the Python API from docstrings
            'latex2mathml>=3.77; python_version >= "3.9"',  # formulas that browsers draw without a script
        ],
        "dev": [
            "pytest>=7.4,<10",  # test runner
            "pytest-xdist>=3.5,<4",  # tests in parallel: most of their time is the start of fairseq's commands
            "hypothesis>=6.100,<7",  # property tests of the losses
            "ruff>=0.17.6,<0.18",  # lint and format; its format changes between minor versions
            "mypy>=1.14,<3",  # types of losses, teachers and the leaf modules
            "build>=1.2,<2",  # release files (make dist)
            "setuptools>=56,<81",  # the packaging test builds without isolation; 81 removed pkg_resources (tensorboard)
            "numba>=0.57",  # the CPU kernels' tests
            'ray[data]>=2.9; python_version >= "3.9"',  # --runner ray on a Ray cluster started by the test
            # the GPU kernels' tests in its interpreter, without a GPU; a CUDA torch already includes it
            'triton>=3.1; platform_system == "Linux" and platform_machine == "x86_64" and python_version >= "3.10"',
            "wheel>=0.40",  # the same, for setuptools older than 70
            'ctranslate2>=4.0; python_version >= "3.9"',  # the tests of export, evaluate and the fast decoder
            'safetensors>=0.4; python_version >= "3.9"',  # the tests of export
            *REPORT,  # the tests of report
            *HTTP,  # the tests of decode --engine http
            'optuna>=3.0; python_version >= "3.9"',  # the tests of sweep
            *PIPELINE,  # the tests of distill
            *PUBLISHED,  # the tests of published-format.sh
            *CLASSIFICATION,  # the tests of evaluate-classifier
            'seqeval>=1.2.2; python_version >= "3.9"',  # the same
            'onnx>=1.14; python_version >= "3.9"',  # the tests of export --format onnx
            'onnxruntime>=1.15; python_version >= "3.9"',  # the same
            # the tests of Hugging Face teachers; version 5 imports torchaudio, which another build of torch cannot load
            'transformers>=4.40,<5; python_version >= "3.9"',
            "protobuf",  # the tests of vocabulary
        ],
    },
    entry_points={"console_scripts": ["kd-plugin = kd_plugin.cli:main"]},
)
