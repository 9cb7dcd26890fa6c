"""What is exported, in which form, and how far it may be from the original: the options of `kd-plugin export`."""

from typing import List, NamedTuple, Optional

from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.files.protection import Named

FORMATS = ("ctranslate2", "fairseq", "safetensors")
SUBWORDS = {"": "spm.model", "source": "source.spm", "target": "target.spm"}  # by side; "": one for both
# BLEU of the exported model's translations against fairseq's: an int8 model that is as good as its checkpoint differs
# from it in one sentence of ten, by a word or two; one with a mistake in it is far below
THRESHOLD, QUANTIZED_THRESHOLD = 98.0, 80.0


class Export(NamedTuple):
    """None: not said."""

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
    inputs: List[Named]
