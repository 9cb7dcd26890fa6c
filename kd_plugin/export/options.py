"""The options of `kd-plugin export`: formats, and how far a model may differ from the original."""

from typing import List, NamedTuple, Optional

from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.errors import KDPluginError
from kd_plugin.files.protection import Named

ONNX = "onnx"
FORMATS = ("ctranslate2", "fairseq", "safetensors", ONNX)
SUBWORDS = {"": "spm.model", "source": "source.spm", "target": "target.spm"}  # by side; "": one for both
# BLEU of the exported model's translations against fairseq's: an int8 model as good as its checkpoint differs from it
# in one sentence out of ten, by a word or two; a faulty one is far below
THRESHOLD, QUANTIZED_THRESHOLD = 98.0, 80.0


class Export(NamedTuple):
    """The options. None: not given."""

    checkpoint: str
    output: str
    format: str
    quantization: Optional[str]
    fp16: bool
    subwords: SubwordOptions
    source_lang: Optional[str]
    target_lang: Optional[str]
    dict_dir: Optional[str]
    user_dir: Optional[str]
    max_positions: Optional[int]
    vocabulary_map_from: Optional[List[str]]
    check: Optional[str]
    check_threshold: Optional[float]
    task: Optional[str]
    head: Optional[str]
    inputs: List[Named]


def check_flags(args: Export) -> None:
    """
    Raises:
        KDPluginError: a flag is not for this format, or not without another
    """
    from kd_plugin.corpus.languages import check_languages  # with sacreBLEU, which --help can do without

    check_languages(args.source_lang, args.target_lang)
    for flag, value in (("--task", args.task), ("--head", args.head)):
        if value is not None and args.format != ONNX:
            raise KDPluginError(f"{flag}: only with --format {ONNX}. Remedy: leave it out")
    if args.format == ONNX:
        for flag, given in (
            ("--fp16", args.fp16),
            ("--source-lang", args.source_lang),
            ("--target-lang", args.target_lang),
            ("--check-threshold", args.check_threshold is not None),
        ):
            if given:
                raise KDPluginError(f"{flag}: not with --format {ONNX}. Remedy: leave it out")
    if args.format != "ctranslate2":
        for flag in ("quantization", "max_positions", "vocabulary_map_from"):
            if getattr(args, flag) is not None:
                raise KDPluginError(f"--{flag.replace('_', '-')}: only with --format ctranslate2. Remedy: leave it out")
    elif args.fp16:
        raise KDPluginError("--fp16: not with --format ctranslate2. Remedy: --quantization float16")
    if args.check and args.format == "safetensors":
        raise KDPluginError("--check: cannot translate with safetensors. Remedy: check --format fairseq instead")
    if args.check_threshold is not None and not args.check:
        raise KDPluginError("--check-threshold: only with --check FILE. Remedy: both, or neither")
    if args.vocabulary_map_from and len(args.vocabulary_map_from) > 2:
        raise KDPluginError("--vocabulary-map-from: more than two files. Remedy: CORPUS.src CORPUS.tgt, or one folder")
