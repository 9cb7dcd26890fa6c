"""Teachers for tests of `kd-plugin init`, and what stock fairseq reads from its students."""

import json
from pathlib import Path

import torch
from fairseq import checkpoint_utils

from kd_plugin import cli
from tests.support import make_checkpoint

SIZES = [
    "--arch", "transformer", "--encoder-layers", 3, "--decoder-layers", 3, "--encoder-embed-dim", 16,
    "--decoder-embed-dim", 16, "--encoder-ffn-embed-dim", 24, "--decoder-ffn-embed-dim", 24,
    "--encoder-attention-heads", 4, "--decoder-attention-heads", 4,
]  # fmt: skip
SHARED = ["--share-all-embeddings"]
TIED = ["--share-decoder-input-output-embed"]
BEFORE = ["--encoder-normalize-before", "--decoder-normalize-before"]
LEARNED = ["--encoder-learned-pos", "--decoder-learned-pos"]
LENGTHS = ["--max-source-positions", 40, "--max-target-positions", 30]
VARIANTS = {
    "post-norm, all shared": SHARED,
    "pre-norm, all shared": [*SHARED, *BEFORE],
    "post-norm, separate": [],
    "pre-norm, output tied": [*TIED, *BEFORE],
    "pre-norm encoder only": ["--encoder-normalize-before"],
    "learned positions": [*TIED, *LEARNED, *LENGTHS],
    "layer norm on embeddings": [*SHARED, "--layernorm-embedding"],
    "layer norm on embeddings, pre-norm": [*BEFORE, "--layernorm-embedding"],
    "no final norm": [*BEFORE, "--no-decoder-final-norm"],
    "no positions, no scale": ["--no-token-positional-embeddings", "--no-scale-embedding"],
    "gelu": [*SHARED, "--activation-fn", "gelu"],
    "narrower encoder": ["--encoder-embed-dim", 8],
    "factorised output": ["--decoder-output-dim", 6],
    "quantisation noise, layer drop": [*SHARED, "--quant-noise-pq", 0.1, "--encoder-layerdrop", 0.2],
}


def make_dictionary(path: Path, symbols) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")


def words(number, start=0):
    return [f"w{at}" for at in range(start, start + number)]


def make_teacher(folder: Path, *flags, joined=True, seed=3):
    """(path, model) of an untrained fairseq checkpoint with its dictionaries beside it, whose norms are not trivial."""
    for number, language in enumerate(("en", "de")):
        make_dictionary(folder / f"dict.{language}.txt", words(30 if joined else 30 + 7 * number))
    path = folder / "teacher.pt"
    model = make_checkpoint(path, folder, "-s", "en", "-t", "de", *SIZES, *flags, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    save(path, model)
    return path, model


def save(path: Path, model) -> None:
    """Put the weights of a model into its checkpoint."""
    state = torch.load(str(path), weights_only=False)
    history = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}]
    extra = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
    more = {"optimizer_history": history, "extra_state": extra, "task_state": {}}  # which stock fairseq expects
    torch.save({**state, **more, "model": model.state_dict()}, str(path))


def init(*arguments) -> int:
    return cli.main(["init", *map(str, arguments)])


def read_by_fairseq(path: Path, data: Path, **overrides):
    """The model, as stock fairseq-generate builds it."""
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data), **overrides})
    return models[0].eval()


def batch(symbols, target_symbols=None, seed=0):
    """net_input of three random sentences, the shorter ones padded on the left (source) and on the right (target)."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, symbols, (3, 9), generator=generator)
    target = torch.randint(4, target_symbols or symbols, (3, 8), generator=generator)
    source[:, -1], target[:, 0] = 2, 2
    source[1, :4], target[1, 5:] = 1, 1
    return {"src_tokens": source, "src_lengths": torch.tensor([9, 5, 9]), "prev_output_tokens": target}


@torch.no_grad()
def logits(model, net_input):
    """Of the real positions."""
    return model(**net_input)[0][net_input["prev_output_tokens"].ne(1)]


def assert_same_logits(one, other, net_input, tolerance=1e-5):
    """Relative to the largest."""
    ours, theirs = logits(one, net_input), logits(other, net_input)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def manifest(path: Path):
    return json.loads(path.with_name(f"{path.stem}.init.json").read_text(encoding="utf-8"))
