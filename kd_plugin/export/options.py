"""The options of `kd-plugin export`: formats, and how far a model may differ from the original."""

from typing import List, NamedTuple, Optional

from kd_plugin.corpus.subwords import SubwordOptions
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
