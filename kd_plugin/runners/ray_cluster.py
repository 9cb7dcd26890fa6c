"""Shards on a Ray cluster, through Ray Data."""

import pickle
from typing import Any, Iterator, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.runners.local import MakeWorker


def run_ray(shards: Sequence[Any], make_worker: MakeWorker, workers: int) -> Iterator[Any]:
    """The results of all shards, in the order of completion."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise KDPluginError(f"--runner ray: {error}. Remedy: pip install 'kd-plugin[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # the cluster at RAY_ADDRESS, else a local one
    # pickled, because Ray Data would turn them into columns
    rows = [{"shard": pickle.dumps(shard)} for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _RayWorker,
        fn_constructor_args=(make_worker,),
        concurrency=workers,
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
    )
    for row in dataset.iter_rows():
        if row["error"]:
            raise KDPluginError(row["error"])
        yield pickle.loads(row["result"])


class _RayWorker:
    """An actor that loads the teacher once and processes one shard after another."""

    def __init__(self, make_worker: MakeWorker):
        self._worker = make_worker(0)  # each actor sees only its own GPU, as number 0

    def __call__(self, row: Any) -> Any:
        try:
            return {"result": pickle.dumps(self._worker(pickle.loads(row["shard"]))), "error": ""}
        except KDPluginError as error:  # Ray would wrap an exception in its own
            return {"result": b"", "error": str(error)}
