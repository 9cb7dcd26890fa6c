"""A folder of Marian as OPUS-MT packs it, with the weights of transformers' MarianMT model."""

import json
import shutil
from pathlib import Path

import numpy as np

CONFIG = """dim-emb: 16
enc-depth: 1
dec-depth: 2
transformer-heads: 2
transformer-ffn-activation: {activation}
transformer-preprocess: ""
transformer-postprocess: dan
transformer-postprocess-emb: d
transformer-postprocess-top: ""
transformer-decoder-autoreg: self-attention
transformer-no-projection: false
transformer-guided-alignment-layer: last
type: transformer
"""


def make_marian(of: Path, folder: Path) -> Path:
    """The same model as the folder of Hugging Face `of`, whose vocabulary both sides share."""
    import transformers

    model = transformers.MarianMTModel.from_pretrained(str(of))
    vocabulary = json.loads((of / "vocab.json").read_text(encoding="utf-8"))
    folder.mkdir()
    weights = {"Wemb": _array(model.get_input_embeddings().weight)[:-1]}  # without the padding that Marian has not
    weights["decoder_ff_logit_out_b"] = _array(model.final_logits_bias)[:, :-1]
    for side, stack in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        for number, layer in enumerate(stack.layers, 1):
            scope = f"{side}_l{number}"
            weights.update(_attention(f"{scope}_self", layer.self_attn, layer.self_attn_layer_norm))
            if side == "decoder":
                weights.update(_attention(f"{scope}_context", layer.encoder_attn, layer.encoder_attn_layer_norm))
            for name, linear in (("1", layer.fc1), ("2", layer.fc2)):
                weights.update(_linear(f"{scope}_ffn", name, linear))
            weights.update(_norm(f"{scope}_ffn_ffn", layer.final_layer_norm))
    text = CONFIG.format(activation={"gelu": "gelu"}.get(model.config.activation_function, "relu"))
    weights["special:model.yml"] = np.frombuffer(text.encode() + b"\0", dtype=np.int8)
    np.savez(folder / "model.npz", **weights)
    symbols = sorted(vocabulary, key=lambda symbol: vocabulary[symbol])[:-1]
    lines = "".join(f"{json.dumps(symbol, ensure_ascii=False)}: {at}\n" for at, symbol in enumerate(symbols))
    (folder / "vocab.yml").write_text(lines, encoding="utf-8")
    (folder / "decoder.yml").write_text("models:\n- model.npz\nvocabs:\n- vocab.yml\n- vocab.yml\nbeam-size: 6\n")
    for name in ("source.spm", "target.spm"):
        shutil.copy(of / name, folder / name)
    return folder


def _array(tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _linear(scope, name, linear):
    return {f"{scope}_W{name}": _array(linear.weight).T, f"{scope}_b{name}": _array(linear.bias)[None]}


def _norm(scope, norm):
    return {f"{scope}_ln_scale": _array(norm.weight)[None], f"{scope}_ln_bias": _array(norm.bias)[None]}


def _attention(scope, attention, norm):
    projections = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.out_proj}
    found = _norm(f"{scope}_Wo", norm)
    for name, linear in projections.items():
        found.update(_linear(scope, name, linear))
    return found
