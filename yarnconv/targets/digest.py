"""A file's identity, taken by several workers: SHA-256 of the SHA-256 of each of its 16 MiB chunks."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from yarnconv.targets.threads import share_out

CHUNK = 2**24


def file_digest(path: Path, workers: int = 1) -> str:
    """In hexadecimal. An empty file is the SHA-256 of nothing."""
    digests: dict[int, bytes] = {}

    def work(offsets: Iterator[int]) -> None:
        with path.open("rb", buffering=0) as file:  # one each, for each has its own place in it
            for offset in offsets:
                file.seek(offset)
                digests[offset] = hashlib.sha256(file.read(CHUNK)).digest()

    share_out(iter(range(0, path.stat().st_size, CHUNK)), work, workers)
    return hashlib.sha256(b"".join(digests[offset] for offset in sorted(digests))).hexdigest()
