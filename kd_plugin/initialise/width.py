"""A narrower model: every matrix in the narrower basis of the hidden states (basis.py).

A matrix W that reads hidden states becomes W A and one that writes becomes Pᵀ W, with P the basis and A the best map
from the student's hidden states to the teacher's (norms.py).
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.initialise.basis import Basis, basis_of, identity, second_moments, sinusoids
from kd_plugin.initialise.heads import Attention, narrower, strongest_heads
from kd_plugin.initialise.norms import Read, narrow_norm
from kd_plugin.initialise.statistics import Statistics
from kd_plugin.initialise.units import bias_without, strongest_units
from kd_plugin.initialise.whole import EMBEDDINGS, OUT_DIM, OUTPUT, SIDES, Whole, norm_before

POSITION_TABLE = "{}.embed_positions.weight"


class Sizes(NamedTuple):
    """The student's: width, feed-forward units, heads of each side. None: the teacher's"""

    dim: Optional[int] = None
    units: Optional[int] = None
    heads: Optional[int] = None


class Narrowed(NamedTuple):
    """The student, and what was done.

    bases: of each side
    heads, units: the teacher's that were kept, by the name of the attention or layer; only where some were dropped
    errors: relative errors of reconstruction, by the name of the embedding, layer norm or attention
    """

    whole: Whole
    bases: Dict[str, Basis]
    heads: Dict[str, List[int]]
    units: Dict[str, List[int]]
    errors: Dict[str, float]


def narrow(whole: Whole, sizes: Sizes, statistics: Optional[Statistics]) -> Narrowed:
    """A model of these sizes."""
    asked = {"embed_dim": sizes.dim, "ffn_embed_dim": sizes.units, "attention_heads": sizes.heads}
    if all(size in (None, whole.options[f"{side}_{name}"]) for side in SIDES for name, size in asked.items()):
        bases = {side: identity(whole.dim(side)) for side in SIDES}
        return Narrowed(whole, bases, {}, {}, {})
    return _Narrower(whole, sizes, statistics).run()


class _Narrower:
    def __init__(self, whole: Whole, sizes: Sizes, statistics: Optional[Statistics]):
        self.whole, self.statistics = whole, statistics
        self.weights = {name: weight.double() for name, weight in whole.weights.items()}
        self.new: Dict[str, Tensor] = {}
        self.dim = {side: sizes.dim or whole.dim(side) for side in SIDES}
        self.units = {side: sizes.units or whole.units(side) for side in SIDES}
        self.heads = {side: sizes.heads or whole.heads(side) for side in SIDES}
        self.kept_heads: Dict[str, List[int]] = {}
        self.kept_units: Dict[str, List[int]] = {}
        self.bases = self._bases()
        self.reads: Dict[str, Read] = {}
        self.errors: Dict[str, float] = {}

    def run(self) -> Narrowed:
        options = dict(self.whole.options)
        for side in SIDES:
            options[f"{side}_embed_dim"] = self.dim[side]
            options[f"{side}_ffn_embed_dim"] = self.units[side]
            options[f"{side}_attention_heads"] = self.heads[side]
        options["decoder_input_dim"] = self.dim["decoder"]
        if OUT_DIM not in self.weights:
            options["decoder_output_dim"] = self.dim["decoder"]
        for side in SIDES:
            self._embeddings(side)
            self._norms(side)
            self._quantised(side)
        for side in SIDES:
            for layer in range(self.whole.layers(side)):
                self._layer(side, layer)
        self._output()
        assert set(self.weights) == set(self.new), set(self.weights) ^ set(self.new)
        student = self.whole._replace(options=options, weights=self.new)
        return Narrowed(student, self.bases, self.kept_heads, self.kept_units, self.errors)

    def _bases(self) -> Dict[str, Basis]:
        if all(self.dim[side] == self.whole.dim(side) for side in SIDES):
            return {side: identity(self.dim[side]) for side in SIDES}
        moments = {side: self._moments(side) for side in SIDES}
        if self.whole.shares_all:
            moments = dict.fromkeys(SIDES, moments["encoder"] + moments["decoder"])
        return {
            side: basis_of(moments[side], self.dim[side], self._is_sinusoidal(side))
            if self.dim[side] != self.whole.dim(side)
            else identity(self.dim[side])
            for side in SIDES
        }

    def _moments(self, side: str) -> Tensor:
        scale = self.whole.scale(side)
        found = [second_moments(self.weights[EMBEDDINGS[side]] * scale)]
        if side == "decoder" and not self.whole.ties_output and OUT_DIM not in self.weights:
            rows = self.weights[OUTPUT]
            found.append(second_moments(rows) * (found[0].trace() / second_moments(rows).trace()))
        if self.statistics is not None:
            found += [self.statistics.embeddings[side]]
            found += [m for name, m in self.statistics.norms.items() if name.startswith(side)]
        elif self._is_sinusoidal(side):
            found.append(second_moments(sinusoids(self.whole.dim(side), 32)))
        return sum(moments / moments.trace() for moments in found)  # type: ignore[return-value]

    def _is_sinusoidal(self, side: str) -> bool:
        named = POSITION_TABLE.format(side) in self.weights
        return not named and not self.whole.options.get("no_token_positional_embeddings")

    def _factor(self, side: str) -> float:
        """By how much embeddings grow, because fairseq multiplies them by the root of the width."""
        old = self.whole.scale(side)
        return old / (self.dim[side] ** 0.5 if old != 1.0 else 1.0)

    def _embeddings(self, side: str) -> None:
        basis, rows = self.bases[side].map, self.weights[EMBEDDINGS[side]]
        self.new[EMBEDDINGS[side]] = rows @ basis * self._factor(side)
        if not self.bases[side].is_whole:
            self.errors[EMBEDDINGS[side]] = float((rows - rows @ basis @ basis.T).norm() / rows.norm())
        table = POSITION_TABLE.format(side)
        if table in self.weights:
            self.new[table] = self.weights[table] @ basis

    def _norms(self, side: str) -> None:
        for name in [name[: -len(".weight")] for name in self.weights if name.startswith(side)]:
            if name.endswith(("layer_norm", "layernorm_embedding")):
                divisor = 1.0
                if side == "decoder" and name == norm_before(self.whole, side, self.whole.layers(side)):
                    divisor = self._factor(side) if self.whole.ties_output else 1.0
                self._norm(name, self.bases[side], divisor)

    def _norm(self, name: str, basis: Basis, divisor: float) -> None:
        pair = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        moments = self.statistics.norms[name] if self.statistics is not None else None
        norm = narrow_norm(pair, basis, moments, divisor)
        self.new[f"{name}.weight"], self.new[f"{name}.bias"], self.reads[name] = norm[:3]
        if norm.error:
            self.errors[name] = norm.error

    def _read(self, side: str, layer: int) -> Read:
        name = norm_before(self.whole, side, layer)
        return self._raw(side) if name is None else self.reads[name]

    def _raw(self, side: str) -> Read:
        basis = self.bases[side].map
        return Read(basis, torch.zeros(basis.size(0), dtype=torch.float64))

    def _quantised(self, side: str) -> None:
        """The matrix that --quant-noise-pq puts behind the embeddings: the encoder's behind their layer norm."""
        name = f"{side}.quant_noise.weight"
        if name in self.weights:
            norm = f"{side}.layernorm_embedding"
            read = self.reads[norm] if side == "encoder" and norm in self.reads else self._raw(side)
            self.new[name] = self.bases[side].map.T @ read.weight(self.weights[name])

    def _layer(self, side: str, layer: int) -> None:
        prefix = f"{side}.layers.{layer}"
        before = bool(self.whole.options.get(f"{side}_normalize_before"))
        read = self._read(side, layer)
        self._attention(f"{prefix}.self_attn", side, read, read)
        if side == "decoder":
            source = self._read("encoder", self.whole.layers("encoder"))
            norm = "encoder_attn_layer_norm" if before else "self_attn_layer_norm"
            self._attention(f"{prefix}.encoder_attn", side, self.reads[f"{prefix}.{norm}"], source)
        last = "encoder_attn_layer_norm" if side == "decoder" else "self_attn_layer_norm"
        norm = "final_layer_norm" if before else last
        self._feed_forward(prefix, side, self.reads[f"{prefix}.{norm}"])

    def _pair(self, name: str, read: Read) -> Tuple[Tensor, Tensor]:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return read.weight(weight), read.bias(weight, bias)

    def _attention(self, name: str, side: str, queries: Read, keys: Read) -> None:
        basis = self.bases[side].map
        out = self.weights[f"{name}.out_proj.weight"], self.weights[f"{name}.out_proj.bias"]
        attention = Attention(
            self._pair(f"{name}.q_proj", queries),
            self._pair(f"{name}.k_proj", keys),
            self._pair(f"{name}.v_proj", keys),
            (basis.T @ out[0], basis.T @ out[1]),
            self.whole.heads(side),
        )
        known = self.statistics.heads[name] if self.statistics is not None else None
        kept = strongest_heads(attention, self.heads[side], known)
        if len(kept) < attention.heads:
            self.kept_heads[name] = kept
        if known is not None:
            known = known._replace(mean=known.mean @ basis)
        reduced, error = narrower(attention, kept, self.dim[side], known)
        if error:
            self.errors[name] = error
        for part, pair in zip(("q_proj", "k_proj", "v_proj", "out_proj"), reduced[:4]):
            self.new[f"{name}.{part}.weight"], self.new[f"{name}.{part}.bias"] = pair  # type: ignore[misc]

    def _feed_forward(self, prefix: str, side: str, read: Read) -> None:
        first, second = (self.weights[f"{prefix}.{part}.weight"] for part in ("fc1", "fc2"))
        known = self.statistics.units[prefix] if self.statistics is not None else None
        kept = strongest_units(first, second, self.units[side], known)
        if len(kept) < first.size(0):
            self.kept_units[prefix] = kept
        basis = self.bases[side].map
        weight, bias = self._pair(f"{prefix}.fc1", read)
        self.new[f"{prefix}.fc1.weight"], self.new[f"{prefix}.fc1.bias"] = weight[kept], bias[kept]
        new_bias = bias_without((second, self.weights[f"{prefix}.fc2.bias"]), kept, known)
        self.new[f"{prefix}.fc2.weight"], self.new[f"{prefix}.fc2.bias"] = basis.T @ second[:, kept], basis.T @ new_bias

    def _output(self) -> None:
        read = self._read("decoder", self.whole.layers("decoder"))
        if OUT_DIM in self.weights:
            self.new[OUT_DIM], self.new[OUTPUT] = read.weight(self.weights[OUT_DIM]), self.weights[OUTPUT]
        elif self.whole.ties_output:
            self.new[OUTPUT] = self.new[EMBEDDINGS["decoder"]]
        else:
            self.new[OUTPUT] = read.weight(self.weights[OUTPUT])
