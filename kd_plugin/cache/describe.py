"""Describes a store: whose answers it holds, for which data, and how much of the teacher's mass they capture."""

from kd_plugin.cache.store import Store


def describe(store: Store) -> str:
    """Several lines of text with a histogram."""
    identity, manifest = store.identity, store.manifest
    width, data = identity.layout.width, identity.data
    teachers = ", ".join(
        f"sha256 {teacher['sha256']} ({teacher['parameters']:,} parameters, weight {teacher['weight']:g})"
        for teacher in identity.teachers
    )
    counts = [sum(column) for column in zip(*(shard.histogram for shard in manifest.shards))]
    hashes = ", ".join(f"{name[:-7]} {value[:16]}" for name, value in data.items() if name.endswith("_sha256"))
    dropped = []
    if manifest.teacher_dropped is not None:
        share = f"{manifest.teacher_dropped:.2%}"
        dropped = [
            f"  dropped      {share} of the teacher's mass, on symbols that the student lacks; the rest is stored"
        ]
    lines = [
        f"{store.folder}",
        f"  split        {identity.split}: {data['sentences']:,} sentences, {data['tokens']:,} target tokens",
        f"  entries      {identity.kind}, k {identity.k}, temperature {identity.temperature:g}, vocabulary "
        f"{identity.vocab:,}",
        f"  teacher      {teachers}, {identity.dtype}",
        f"  data         {hashes}, dictionary {identity.dictionary_sha256[:16]}",
        f"  size         {width} bytes per token, {manifest.tokens * width:,} bytes in {len(manifest.shards)} shards",
        *dropped,
        f"  captured     {manifest.captured:.2%} of the teacher's mass on average; tokens by captured mass:",
    ]
    largest = max([1, *counts])
    for step, count in enumerate(counts):
        if count:
            bar = "#" * max(1, round(40 * count / largest))
            lines.append(f"    {step * 5:3d}-{step * 5 + 5:3d} %  {count / max(1, manifest.tokens):6.1%}  {bar}")
    return "\n".join(lines)
