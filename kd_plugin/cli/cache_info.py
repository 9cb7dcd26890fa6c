"""`kd-plugin cache-info`: whose answers a cache contains, for which data, and whether its bytes are unchanged."""

import argparse
from pathlib import Path

from kd_plugin.cache.describe import describe
from kd_plugin.cache.store import open_stores
from kd_plugin.runners.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache_dir", metavar="DIR", help="the folder of --cache-dir and --teacher-cache")
    parser.add_argument("--verify", action="store_true", help="hash all bytes again and compare")


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
        print(f"verified: {total:,} bytes are unchanged")
    return 0
