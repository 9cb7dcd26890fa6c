"""All differences between fairseq distributions and between torch and numpy versions, in one place."""

import argparse
import codecs
import collections
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import pickle
import re
import types
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch

from kd_plugin.errors import KDPluginError


def _version(text: str) -> Tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


TORCH_VERSION = _version(torch.__version__)
# in older versions, torch.load(weights_only=True) itself could be made to run code (CVE-2025-32434, CVE-2026-24747)
TRUSTED_TORCH = (2, 10)
# whether torch's allow-list for weights_only can be extended (already in 2.4, which is untested)
HAS_SAFE_GLOBALS = TORCH_VERSION >= (2, 5)
NUMPY_2 = _version(np.__version__) >= (2, 0)
# even older versions use our own restricted unpickler instead
WEIGHTS_ONLY_IS_WEAK = HAS_SAFE_GLOBALS and TORCH_VERSION < TRUSTED_TORCH


def has_fairseq() -> bool:
    return importlib.util.find_spec("fairseq") is not None


def require_fairseq() -> None:
    """Raises KDPluginError with the remedy if fairseq is not installed."""
    if not has_fairseq():
        raise KDPluginError(
            "fairseq is not installed. Remedy: pip install 'kd-plugin[fairseq]' "
            "(fairseq 0.12.2 below Python 3.11, fairseq-fixed 0.12.3.1 from 3.11)"
        )


def fairseq_distribution() -> str:
    """`name:version` of the installed distribution that provides `import fairseq`."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("fairseq-fixed", "fairseq"):
        try:
            return f"{name}:{version(name)}"
        except PackageNotFoundError:
            continue
    import fairseq

    return f"fairseq:{fairseq.__version__}"


def _allowed_types() -> Dict[str, Any]:
    """The types beyond tensors and plain containers in fairseq checkpoints, by their pickled names.

    argparse.Namespace holds the run's flags; the numpy types occur if --eval-bleu has logged its counts. None of them
    runs code when it is rebuilt.
    """
    # numpy 2 has renamed the module
    multiarray: Any = importlib.import_module("numpy._core.multiarray" if NUMPY_2 else "numpy.core.multiarray")
    allowed: Dict[str, Any] = {"argparse.Namespace": argparse.Namespace, "numpy.ndarray": np.ndarray}
    allowed["numpy.dtype"] = np.dtype
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[f"{module}._reconstruct"] = multiarray._reconstruct
        allowed[f"{module}.scalar"] = multiarray.scalar
    for code in "?bhilqBHILQefd":
        dtype_class = type(np.dtype(code))
        allowed[f"{dtype_class.__module__}.{dtype_class.__name__}"] = dtype_class
    return allowed


def _safe_globals() -> List[Any]:
    # torch accepts (object, name) pairs from 2.6 on; 2.5 derives the name itself
    allowed = _allowed_types()
    return [(value, name) for name, value in allowed.items()] if TORCH_VERSION >= (2, 6) else list(allowed.values())


def allow_fairseq_checkpoints() -> None:
    """Lets stock fairseq load and resume its checkpoints on torch >= 2.6, where weights_only is the default.

    fairseq calls torch.load without arguments, so exactly these types go onto torch's allow-list; weights_only stays
    on, and anything else in a file is still refused.
    """
    if HAS_SAFE_GLOBALS:
        torch.serialization.add_safe_globals(_safe_globals())


def let_ranks_share_checkpoints() -> None:
    """Lets stock fairseq resume on several ranks with torch >= 2.6.

    Rank 0 reads the checkpoint, with weights_only, and sends the resulting objects to the other ranks as a pickle. It
    contains many omegaconf types, and the others open it with torch.load. The message comes from the run's own rank 0,
    like all messages that fairseq pickles between ranks, and contains only what weights_only has accepted.
    """
    from fairseq.distributed import utils

    if not HAS_SAFE_GLOBALS:
        return

    def broadcast_object_slow(obj: Any, src_rank: int, group: object, dist_device: torch.device) -> Any:
        sends = utils.get_rank(group) == src_rank
        buffer = io.BytesIO()
        if sends:
            torch.save(obj, buffer)
        length = torch.tensor([buffer.getbuffer().nbytes], dtype=torch.int64, device=dist_device)
        utils.broadcast(length, src=src_rank, group=group)
        if sends:
            message = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).to(dist_device)
        else:
            message = torch.empty(int(length), dtype=torch.uint8, device=dist_device)
        utils.broadcast(message, src=src_rank, group=group)
        if sends:
            return obj
        return torch.load(io.BytesIO(message.cpu().numpy().tobytes()), map_location="cpu", weights_only=False)

    utils._broadcast_object_slow = broadcast_object_slow


def load_safely(file: Any) -> Any:
    """torch.load that never runs code from the file: weights_only with the exact allow-list of `_allowed_types`.

    Raises pickle.UnpicklingError naming the first type that is not on the list.
    """
    if HAS_SAFE_GLOBALS:
        # not the context manager safe_globals, which on exit also removes what was allowed before
        allow_fairseq_checkpoints()
        return torch.load(file, map_location="cpu", weights_only=True)
    # Below 2.5 weights_only defaults to False, and the stand-in for pickle refuses unknown types instead. torch 1.13
    # ignores pickle_module, so the name that it uses is replaced as well; the weights_only of that time cannot be
    # extended.
    restricted = _restricted_pickle()
    with _pickle_of_torch(restricted):
        return torch.load(file, map_location="cpu", pickle_module=restricted)


@contextlib.contextmanager
def _pickle_of_torch(module: types.ModuleType) -> Iterator[None]:
    before = torch.serialization.pickle  # type: ignore[attr-defined]
    torch.serialization.pickle = module  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.serialization.pickle = before  # type: ignore[attr-defined]


def bring_up_to_date(state: Dict[str, Any], overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """Upgrades a checkpoint's content to today's fairseq, as `load_checkpoint_to_cpu` does after reading a file.

    Args:
        state: modified in place
        overrides: fields to replace in its configuration
    """
    from fairseq import checkpoint_utils
    from fairseq.dataclass.utils import overwrite_args_by_name
    from omegaconf import OmegaConf, _utils
    from omegaconf import __version__ as omegaconf

    if state.get("args") is not None:
        for name, value in (overrides or {}).items():
            setattr(state["args"], name, value)
    if state.get("cfg") is not None:
        # an old model's configuration contains a Namespace, which is not an omegaconf primitive
        if _version(omegaconf) >= (2, 2):
            state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        else:
            is_primitive_type, _utils.is_primitive_type = _utils.is_primitive_type, lambda _: True
            try:
                state["cfg"] = OmegaConf.create(state["cfg"])
            finally:
                _utils.is_primitive_type = is_primitive_type
            OmegaConf.set_struct(state["cfg"], True)
        overwrite_args_by_name(state["cfg"], overrides or {})
    updated: Dict[str, Any] = checkpoint_utils._upgrade_state_dict(state)
    return updated


def _restricted_pickle() -> types.ModuleType:
    """A stand-in for the pickle module on torch < 2.5, whose weights_only has no extensible allow-list."""
    allowed = _allowed_types()
    allowed["collections.OrderedDict"] = collections.OrderedDict
    allowed["_codecs.encode"] = codecs.encode  # how numpy's bytes are pickled
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        allowed[f"torch._utils.{name}"] = getattr(torch._utils, name)
    for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"):
        allowed[f"torch.{name}Storage"] = getattr(torch, f"{name}Storage")
    for dtype in ("float16", "float32", "float64", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        allowed[f"torch.{dtype}"] = getattr(torch, dtype)
    allowed["torch.Size"] = torch.Size
    # names from Python 2 pickles are left out on purpose
    buildable = (argparse.Namespace, collections.OrderedDict, np.ndarray, np.dtype, torch.Tensor)

    # the pure-Python unpickler, the only one in which BUILD can be guarded
    base: Any = pickle._Unpickler  # type: ignore[attr-defined]

    class Unpickler(base):  # type: ignore[misc]
        dispatch = dict(base.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            full_name = f"{module}.{name}"
            if full_name not in allowed:
                raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {full_name}")
            return allowed[full_name]

        def load_build(self) -> None:
            # BUILD on a class or function would set attributes on it, so allow only instances of these types
            if not isinstance(self.stack[-2], buildable):
                raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {self.stack[-2]!r} (state for it)")
            base.load_build(self)

        dispatch[pickle.BUILD[0]] = load_build

    def load(file: Any, **arguments: Any) -> Any:
        return Unpickler(file, **arguments).load()

    module = types.ModuleType("kd_plugin_restricted_pickle")
    module.Unpickler = Unpickler  # type: ignore[attr-defined]
    module.load = load  # type: ignore[attr-defined]
    module.UnpicklingError = pickle.UnpicklingError  # type: ignore[attr-defined]
    return module


# names of the second copy of encoder layer weights that fairseq 0.12.2 keeps for its BetterTransformer path
BETTER_TRANSFORMER_COPY = re.compile(
    r"(^|\.)(sentence_)?encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"
)


def disable_better_transformer() -> None:
    """Keeps encoders of fairseq 0.12.2 off its BetterTransformer path; leaves other fairseq versions alone.

    Models that are loaded but not trained, such as teachers, take this path, and it fails with "Mask Type should be
    defined" on torch >= 1.13; there, not even stock fairseq-generate runs without this fix.
    """
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    init = TransformerEncoderLayerBase.__init__
    if "can_use_fastpath" not in init.__code__.co_names:
        return

    def without_fastpath(self: Any, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        self.can_use_fastpath = False

    TransformerEncoderLayerBase.__init__ = functools.wraps(init)(without_fastpath)


def refuse_idle_ranks(parser: argparse.ArgumentParser) -> None:
    """Makes `parser` refuse flags with which fairseq would train nothing and exit 0.

    With --distributed-init-method but without --distributed-no-spawn, fairseq spawns min(GPUs, world size) processes:
    none on a machine without a GPU. Since no task is set up then, only the command line can be refused.
    """
    parse: Callable[..., argparse.Namespace] = parser.parse_args

    def parse_args(*arguments: Any, **keywords: Any) -> argparse.Namespace:
        args = parse(*arguments, **keywords)
        if (
            getattr(args, "distributed_init_method", None) is not None
            and not getattr(args, "distributed_no_spawn", False)
            and torch.cuda.device_count() == 0
        ):
            raise KDPluginError(
                "--distributed-init-method without --distributed-no-spawn on a machine without a GPU: fairseq would "
                "start no process, train nothing and exit 0. Remedy: start one process per rank, each with "
                "--cpu --distributed-no-spawn --distributed-rank RANK --distributed-backend gloo "
                "--ddp-backend legacy_ddp"
            )
        return args

    parser.parse_args = parse_args  # type: ignore[assignment, method-assign]


def cpu_computes(dtype: str) -> bool:
    """Whether this CPU has units for `bf16` or `fp16` matrix products; without them torch emulates these products."""
    units = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            words = set(file.read().split())
    except OSError:  # not Linux
        return False
    return not words.isdisjoint(units[dtype])


def onnx_export(
    model: Any, example: Any, file: str, axes: Dict[int, str], more_axes: Dict[int, str], opset: int
) -> None:
    """Writes an ONNX file of a model with one input, `tokens`, and one output, `logits`.

    Uses torch's exporter that records a run, which needs no further package and exports packed LSTMs; from 2.9 on, it
    has to be asked for.

    Args:
        example: an input
        axes, more_axes: names of the axes whose sizes may change, of input and output
    """
    recorded = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # advice to the authors of models
        torch.onnx.export(
            model, (example,), file, input_names=["tokens"], output_names=["logits"], opset_version=opset,
            dynamic_axes={"tokens": axes, "logits": more_axes}, **recorded,
        )  # fmt: skip
