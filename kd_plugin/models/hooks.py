"""Reads inner states from fairseq's own forward pass, by hooks that are there for this pass only."""

import contextlib
from typing import Any, Dict, Iterator, List

from torch import Tensor

from kd_plugin.models.states import SIDES, Recorder, part_of


@contextlib.contextmanager
def hooked(recorder: Recorder, model: Any) -> Iterator[None]:
    """Within this context, a forward pass of fairseq's own code fills the recorder.

    Args:
        model: without wrappers; its forward may be called through them
    """
    handles: List[Any] = []
    inputs: Dict[Any, Tensor] = {}

    def rectangle_rows(x: Tensor, side: str) -> Tensor:
        return x.transpose(0, 1).reshape(-1, x.size(-1)).index_select(0, recorder.rows[side])

    def watch(layer: Any, side: str) -> None:
        before = bool(getattr(layer, "normalize_before", False))
        cross = getattr(layer, "encoder_attn", None)

        def entered(module: Any, args: Any) -> None:
            if args and not before:
                inputs[layer.self_attn] = args[0]
            if len(args) > 1 and cross is not None:
                inputs[layer] = args[1]  # the encoder's output

        def left(module: Any, args: Any, output: Any) -> None:
            recorder.output(layer, rectangle_rows(output[0] if isinstance(output, tuple) else output, side))
            for attention, memory in ((layer.self_attn, inputs.get(layer.self_attn)), (cross, inputs.get(layer))):
                if attention in recorder.attentions and attention in inputs and memory is not None:
                    _project(recorder, attention, inputs[attention], memory)

        def noting(attention: Any) -> Any:
            def note(module: Any, args: Any, output: Tensor) -> None:
                inputs[attention] = output

            return note

        handles.append(layer.register_forward_pre_hook(entered))
        handles.append(layer.register_forward_hook(left))
        if before:
            handles.append(layer.self_attn_layer_norm.register_forward_hook(noting(layer.self_attn)))
        if cross in recorder.attentions:
            norm = layer.encoder_attn_layer_norm if before else layer.self_attn_layer_norm
            handles.append(norm.register_forward_hook(noting(cross)))

    try:
        for layer, side in recorder.side_of.items():
            watch(layer, side)
        for side in SIDES:
            norm = getattr(part_of(model, side), "layer_norm", None)
            if norm is not None and recorder.last(side) in recorder.side_of:

                def normalised(module: Any, args: Any, output: Tensor, side: str = side) -> None:
                    recorder.final_output(side, rectangle_rows(output, side))

                handles.append(norm.register_forward_hook(normalised))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _project(recorder: Recorder, attention: Any, query: Tensor, memory: Tensor) -> None:
    """The projections of (length, batch, width) inputs, as the attention itself makes them."""

    def heads(projected: Tensor) -> Tensor:
        length, batch, _ = projected.shape
        return projected.view(length, batch, attention.num_heads, attention.head_dim).permute(1, 2, 0, 3)

    projections = attention.q_proj(query), attention.k_proj(memory), attention.v_proj(memory)
    recorder.attention(attention, *(heads(projected) for projected in projections))
