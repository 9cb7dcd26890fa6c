"""`kd-plugin cache-info`: whose answers a cache holds, to which data, and whether every byte is as it was written."""

import argparse
from pathlib import Path

from kd_plugin.cache.store import Store, open_stores
from kd_plugin.runners.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache_dir", metavar="DIR", help="the folder of --cache-dir and --teacher-cache")
    parser.add_argument("--verify", action="store_true", help="hash every byte again")


def run(args: argparse.Namespace) -> int:
    """Exit status 0; damage is an error."""
    stores = open_stores(Path(args.cache_dir), flag="cache-info")
    for store in stores:
        print(describe(store))
    if args.verify:
        total = sum(store.manifest.tokens * store.identity.layout.width for store in stores)
        with progress_bar("verify", total, "B", unit_scale=True) as bar:
            for store in stores:
                store.verify(bar.update)
        print(f"verified: {total:,} bytes are as they were written")
    return 0


def describe(store: Store) -> str:
    """A paragraph with a histogram."""
    identity, manifest = store.identity, store.manifest
    width, data = identity.layout.width, identity.data
    teachers = ", ".join(
        f"sha256 {teacher['sha256']} ({teacher['parameters']:,} parameters, weight {teacher['weight']:g})"
        for teacher in identity.teachers
    )
    counts = [sum(column) for column in zip(*(shard.histogram for shard in manifest.shards))]
    lines = [
        f"{store.folder}",
        f"  split        {identity.split}: {data['sentences']:,} sentences, {data['tokens']:,} target tokens",
        f"  entries      {identity.kind}, k {identity.k}, temperature {identity.temperature:g}, vocabulary "
        f"{identity.vocab:,}",
        f"  teacher      {teachers}, {identity.dtype}",
        f"  data         source {data['source_sha256'][:16]}, target {data['target_sha256'][:16]}, "
        f"dictionary {identity.dictionary_sha256[:16]}",
        f"  size         {width} bytes a token, {manifest.tokens * width:,} bytes in {len(manifest.shards)} shards",
        f"  captured     {manifest.captured:.2%} of the teacher's mass in the mean; tokens by what is captured:",
    ]
    largest = max([1, *counts])
    for step, count in enumerate(counts):
        if count:
            bar = "#" * max(1, round(40 * count / largest))
            lines.append(f"    {step * 5:3d}-{step * 5 + 5:3d} %  {count / max(1, manifest.tokens):6.1%}  {bar}")
    return "\n".join(lines)
