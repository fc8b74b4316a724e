"""A file's identity, taken by several workers: SHA-256 of the SHA-256 of each of its 16 MiB chunks."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 2**24


def file_digest(path: Path, workers: int = 1) -> str:
    """In hexadecimal. An empty file is the SHA-256 of nothing."""

    def chunk_digest(offset: int) -> bytes:
        with path.open("rb", buffering=0) as file:  # one each, for each has its own place in it
            file.seek(offset)
            return hashlib.sha256(file.read(CHUNK)).digest()

    with ThreadPoolExecutor(max_workers=workers) as pool:
        digests = pool.map(chunk_digest, range(0, path.stat().st_size, CHUNK))
        return hashlib.sha256(b"".join(digests)).hexdigest()
