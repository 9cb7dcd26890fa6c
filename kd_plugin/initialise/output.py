"""A factorised output projection: vocabulary × rank times rank × width, which fairseq calls project_out_dim.

fairseq's transformer cannot factorise its input embeddings: it makes them as wide as the model.
"""

import torch

from kd_plugin.initialise.whole import OUT_DIM, OUTPUT
from kd_plugin.initialise.width import Narrowed


def factorise_output(narrowed: Narrowed, rank: int) -> Narrowed:
    """The model with the nearest output projection of this rank, from an untied one."""
    weights = dict(narrowed.whole.weights)
    inner = weights[OUT_DIM].double() if OUT_DIM in weights else None
    rows = weights[OUTPUT].double()
    left, values, right = torch.linalg.svd(rows if inner is None else rows @ inner, full_matrices=False)
    weights[OUTPUT], weights[OUT_DIM] = left[:, :rank] * values[:rank], right[:rank]
    error = float(values[rank:].norm() / values.norm())
    whole = narrowed.whole._replace(weights=weights, options={**narrowed.whole.options, "decoder_output_dim": rank})
    return narrowed._replace(whole=whole, errors={**narrowed.errors, OUTPUT: error})
