"""Checks, before any work, that a student of these sizes can be cut from its teacher."""

from typing import Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.initialise.whole import OUT_DIM, OUTPUT, SIDES, Whole
from kd_plugin.initialise.width import Sizes

SMALLEST_WIDTH = 4  # fairseq's sinusoids need it


def check_sizes(whole: Whole, sizes: Sizes, output_dim: Optional[int]) -> None:
    """Refuses sizes that are not smaller than the teacher's, or that fairseq's transformer cannot have.

    Raises:
        KDPluginError: naming the flag
    """
    for side in SIDES:
        for flag, value, most, what in (
            ("--embed-dim", sizes.dim, whole.dim(side), "is {} wide"),
            ("--ffn-dim", sizes.units, whole.units(side), "has {} feed-forward units"),
            ("--heads", sizes.heads, whole.heads(side), "has {} attention heads"),
        ):
            if value is not None and value > most:
                raise KDPluginError(f"{flag} {value}: the teacher's {side} {what.format(most)}. Remedy: at most {most}")
        dim, heads = sizes.dim or whole.dim(side), sizes.heads or whole.heads(side)
        if dim % heads:
            flag = f"--embed-dim {dim}" if sizes.dim else f"--heads {heads}"
            fitting = [str(number) for number in range(1, whole.heads(side) + 1) if dim % number == 0]
            raise KDPluginError(
                f"{flag}: {dim} dimensions cannot be divided among {heads} attention heads. Remedy: --heads "
                f"{' or '.join(fitting)}, or another --embed-dim"
            )
    if sizes.dim is not None and sizes.dim < SMALLEST_WIDTH:
        raise KDPluginError(f"--embed-dim {sizes.dim}: too narrow. Remedy: at least {SMALLEST_WIDTH}")
    if output_dim is None:
        return
    if whole.ties_output:
        raise KDPluginError(
            f"--decoder-output-dim {output_dim}: the teacher's output projection is tied to its embeddings, and "
            "fairseq's transformer can factorise only an untied one. Remedy: leave it out, or a smaller --embed-dim"
        )
    width = sizes.dim or whole.dim("decoder")
    most = min(width, whole.weights[OUTPUT].size(1) + 1 if OUT_DIM in whole.weights else width) - 1
    if output_dim > most:
        raise KDPluginError(
            f"--decoder-output-dim {output_dim}: must be smaller than {most + 1}. Remedy: at most {most}"
        )
