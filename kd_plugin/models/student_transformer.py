"""Named student architectures: stock fairseq transformers in sizes typical of distilled students.

They only set sizes, so their checkpoints are plain `transformer` checkpoints with every size written out.
"""

from typing import Any, Dict

from fairseq.models import register_model_architecture
from fairseq.models.transformer import base_architecture


def _sizes(
    embed_dim: int, ffn_embed_dim: int, attention_heads: int, encoder_layers: int, decoder_layers: int
) -> Dict[str, int]:
    return {
        "encoder_embed_dim": embed_dim,
        "encoder_ffn_embed_dim": ffn_embed_dim,
        "encoder_attention_heads": attention_heads,
        "encoder_layers": encoder_layers,
        "decoder_embed_dim": embed_dim,
        "decoder_ffn_embed_dim": ffn_embed_dim,
        "decoder_attention_heads": attention_heads,
        "decoder_layers": decoder_layers,
    }


STUDENT_ARCHITECTURES: Dict[str, Dict[str, int]] = {
    # for experiments on a CPU, with tens of thousands of sentences
    "transformer_student_micro": _sizes(64, 128, 4, 2, 2),
    # the sizes of Bergamot's tiny and base students (Bogoychev et al. 2020), with attention in the decoder
    "transformer_student_tiny": _sizes(256, 1536, 8, 6, 2),
    "transformer_student_base": _sizes(512, 2048, 8, 6, 2),
    # deep encoder, shallow decoder: decoding spends nearly all its time in the decoder (Kasai et al. 2021)
    "transformer_student_deep_shallow": _sizes(512, 2048, 8, 12, 1),
}


def _register(name: str, sizes: Dict[str, Any]) -> None:
    @register_model_architecture("transformer", name)
    def architecture(args: Any) -> None:
        for key, value in sizes.items():
            setattr(args, key, getattr(args, key, value))
        base_architecture(args)


for _name, _values in STUDENT_ARCHITECTURES.items():
    _register(_name, _values)
