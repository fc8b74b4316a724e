"""What an engine's directory says of its RoPE: each fact from the sidecar, or from the engine's own bytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.rope.tables import Float64Array
from yarnconv.targets.digest import file_digest
from yarnconv.targets.inspection.findings import Finding
from yarnconv.targets.tensorrt.engine_bytes import Header, count_profiles, read_header
from yarnconv.targets.tensorrt.engine_reading import open_engine
from yarnconv.targets.tensorrt.files import ENGINE_FILE, MODEL_FILE
from yarnconv.targets.tensorrt.sidecar import read_sidecar

FLOAT_BYTES = 4
FACTOR_ROUNDING = 1e-6  # of cos^2 + sin^2 in float32
FREQUENCY_ROUNDING = 1e-6  # of an angle by its float32 cosine and sine
MOST_BUCKETS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """One bucket's rows in the engine. reach: how many there are. inv_freq: float64[pairs], radians per
    position, from its second row. attention_factor: the length of its (cos, sin) pairs.
    """

    reach: int
    attention_factor: float
    inv_freq: Float64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """sidecar: the document. header, profiles, tables: from the bytes; None, 0 and empty where they show
    none. findings: where the two disagree.
    """

    sidecar: Mapping[str, Any]
    header: Header | None
    profiles: int
    tables: tuple[TableFacts, ...]
    findings: tuple[Finding, ...]


def _whole(value: Any, least: int, most: int) -> int | None:
    return value if type(value) is int and least <= value <= most else None


def _table(file: MappedFile, entry: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """float32[rows, pairs] at the place that the sidecar names; None where there is no such place."""
    if not isinstance(entry, dict):
        return None
    rows, pairs = (_whole(entry.get(key), 2, 2**31) for key in ("rows", "pairs"))
    offsets = entry.get("offsets")
    offset = _whole(offsets[0], 0, file.size) if isinstance(offsets, list) and offsets else None
    if rows is None or pairs is None or offset is None or offset + rows * pairs * FLOAT_BYTES > file.size:
        return None
    values = np.frombuffer(file.view(offset, rows * pairs * FLOAT_BYTES), np.float32)
    return values.reshape(rows, pairs)


def _read_tables(file: MappedFile, sidecar: Mapping[str, Any]) -> tuple[TableFacts, ...]:
    """What the first pair of tables says of every bucket."""
    by_name = {
        e["name"]: e for e in sidecar["tables"] if isinstance(e, dict) and isinstance(e.get("name"), str)
    }
    cos_name = next((name for name in sorted(by_name) if name.startswith("cos_cache")), "")
    cos, sin = (_table(file, by_name.get(name)) for name in (cos_name, cos_name.replace("cos", "sin", 1)))
    reaches = sidecar["graph"].get("bucket_contexts")
    if cos is None or sin is None or cos.shape != sin.shape or not isinstance(reaches, list):
        return ()
    found, first = [], 0
    for reach in reaches[:MOST_BUCKETS]:
        if _whole(reach, 2, len(cos)) is None or first + reach > len(cos):
            return ()
        c, s = (table[first + 1].astype(np.float64) for table in (cos, sin))
        if not (np.isfinite(c).all() and np.isfinite(s).all()):
            return ()
        length = float(np.median(np.hypot(c, s)))
        found.append(TableFacts(reach=reach, attention_factor=length, inv_freq=np.arctan2(s, c)))
        first += reach
    return tuple(found) if first == len(cos) - 1 else ()  # but for the row of no number


def _recorded_bucket(plan: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """What the sidecar's plan says of a bucket of its scaled layers; nothing where it says nothing."""
    groups = plan.get("groups")
    for group in groups if isinstance(groups, list) else []:
        buckets = group.get("buckets") if isinstance(group, dict) else None
        if not isinstance(buckets, list) or index >= len(buckets):
            continue
        # records of older versions do not say a group's base: all their layers had one
        theta = group.get("rope_theta", plan.get("rope_theta"))
        if (group.get("method"), theta) == (plan.get("method"), plan.get("rope_theta")):
            bucket = buckets[index]
            return bucket if isinstance(bucket, dict) else {}
    return {}


def _alike(own: Float64Array, recorded: Any) -> bool:
    """Whether recorded frequencies are those of the tables."""
    if not isinstance(recorded, list) or not all(type(value) is float for value in recorded):
        return False
    return len(recorded) == len(own) and bool(np.allclose(own, recorded, rtol=FREQUENCY_ROUNDING, atol=0))


def _differs(message: str, code: str = "record-disagrees") -> Finding:
    remedy = "The files are not those of one build: build the engine again."
    return Finding(code=code, severity="error", message=message, remedy=remedy)


def _file_findings(
    directory: Path, sidecar: Mapping[str, Any], header: Header | None, size: int
) -> Iterator[Finding]:
    """Files that are not those which were written, and a header that says so."""
    for key, name in (("engine", ENGINE_FILE), ("graph", MODEL_FILE)):
        if not (directory / name).is_file():
            yield _differs(f"{name} is missing", "file-replaced")
        elif sidecar[key].get("digest") != file_digest(directory / name):
            said = f"{name} is not the file that the sidecar was written with: its digest is another"
            yield _differs(said, "file-replaced")
    if header is None:
        return
    if header.size != size:
        yield _differs(f"the engine's header says {header.size} bytes, the file has {size}", "file-replaced")
    if header.version != sidecar["runtime"].get("version"):
        yield _differs(f"the engine is of version {header.version}, by its header")
    if sorted(header.compute_capabilities) != sorted(map(str, sidecar["compute_capabilities"])):
        yield _differs(f"the engine is for {', '.join(header.compute_capabilities)}, by its header")


def _table_findings(
    sidecar: Mapping[str, Any], facts: tuple[TableFacts, ...], profiles: int
) -> Iterator[Finding]:
    """Tables that are not those of the recorded plan."""
    if not facts:
        yield _differs(
            "the tables are not where the sidecar says: nothing is known of them from the engine",
            "tables-unknown",
        )
        return
    if profiles != len(sidecar["profiles"]):
        yield _differs(f"the engine has {profiles} profiles, the sidecar {len(sidecar['profiles'])}")
    bucket = _recorded_bucket(sidecar["plan"], len(facts) - 1)
    recorded, own = bucket.get("attention_factor"), facts[-1].attention_factor
    if not isinstance(recorded, float) or not isclose(own, recorded, rel_tol=FACTOR_ROUNDING):
        said = f"{recorded:.6g}" if isinstance(recorded, float) else "nothing of it"
        yield _differs(f"the engine's tables have the attention factor {own:.6g}, the sidecar says {said}")
    if not _alike(facts[-1].inv_freq, bucket.get("inv_freq")):
        yield _differs("the engine's tables turn with other frequencies than the sidecar's plan")


def read_engine_facts(directory: Path) -> EngineFacts:
    """Read an engine's directory. Raises BadInput where it is none. Runs nothing."""
    sidecar, file = read_sidecar(directory), open_engine(directory)
    try:
        header, tables, profiles = read_header(file), _read_tables(file, sidecar), count_profiles(file)
        return EngineFacts(
            sidecar=sidecar,
            header=header,
            profiles=profiles,
            tables=tables,
            findings=(
                *_file_findings(directory, sidecar, header, file.size),
                *_table_findings(sidecar, tables, profiles),
            ),
        )
    finally:
        file.close()
