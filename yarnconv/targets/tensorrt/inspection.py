"""What an engine carries of RoPE: by its sidecar where it has one, and by its own bytes, which decide."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput
from yarnconv.rope.observation import Observation
from yarnconv.targets.inspection.carried_rope import CarriedGroup, Claims, Inspected, carried_bucket, clues_of
from yarnconv.targets.inspection.findings import Finding, without_repeats
from yarnconv.targets.inspection.observed_table import ObservedTable
from yarnconv.targets.inspection.rope_findings import (
    claim_findings,
    context_findings,
    group_findings,
    main_group,
)
from yarnconv.targets.record import recorded_claims
from yarnconv.targets.tensorrt.engine_bytes import read_header
from yarnconv.targets.tensorrt.engine_facts import FREQUENCY_ROUNDING, EngineFacts, read_engine_facts
from yarnconv.targets.tensorrt.files import ENGINE_FILE, is_engine
from yarnconv.targets.tensorrt.table_search import find_tables

BYTES = "the engine's bytes"
ENGINE, SIDECAR = "engine", "sidecar"
PLAN_FACTS = (
    *("method", "factor", "original_context", "target_context", "rope_theta", "rotary_dim", "head_dim"),
    *("beta_fast", "beta_slow", "truncate", "attention_factor", "softmax_scale_multiplier"),
    *("low", "high", "regimes", "finetuned", "warnings"),
)


def _identity(facts: EngineFacts) -> dict[str, Any]:
    """What sidecar and engine say. sources: from where each fact comes."""
    document = {key: facts.sidecar["plan"].get(key) for key in PLAN_FACTS}
    sources = dict.fromkeys(document, SIDECAR)
    if facts.tables:
        longest = facts.tables[-1]
        document |= {"attention_factor": longest.attention_factor, "inv_freq": longest.inv_freq.tolist()}
        sources |= {"attention_factor": ENGINE, "inv_freq": ENGINE, "buckets": ENGINE}
        document["buckets"] = [
            {"reach": t.reach, "attention_factor": t.attention_factor, "inv_freq": t.inv_freq.tolist()}
            for t in facts.tables
        ]
    header, graph = facts.header, facts.sidecar["graph"]
    document |= {
        "runtime_version": header.version if header else facts.sidecar["runtime"].get("version"),
        "compute_capabilities": list(
            header.compute_capabilities if header else facts.sidecar["compute_capabilities"]
        ),
        "profiles": facts.sidecar["profiles"],
        "profile_count": facts.profiles,
        "dtype": graph.get("dtype"),
        "max_context": graph.get("max_context"),
    }
    by_header = ENGINE if header else SIDECAR
    sources |= {"runtime_version": by_header, "compute_capabilities": by_header, "profile_count": ENGINE}
    sources |= dict.fromkeys(("profiles", "dtype", "max_context"), SIDECAR)
    return {**document, "sources": sources}


def _shown(identity: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """For people: name, and value with its source."""
    shown = (*PLAN_FACTS[:12], "dtype", "max_context", "runtime_version", "compute_capabilities")
    for key in (*shown, "profile_count"):
        value = identity[key]
        if value is None:
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        if isinstance(value, list):
            text = ", ".join(map(str, value))
        source = BYTES if identity["sources"][key] == ENGINE else "the sidecar"
        yield key.replace("_", " "), f"{text[:60]} ({source})"


def _by_sidecar(facts: EngineFacts) -> tuple[ObservedTable, ...]:
    """The tables at the places that the sidecar names."""
    return tuple(
        ObservedTable(
            reach=table.reach,
            observation=Observation(
                inv_freq=np.maximum(table.inv_freq, 0.0),
                uncertainty=np.full(len(table.inv_freq), FREQUENCY_ROUNDING),
                attention_factor=table.attention_factor,
            ),
        )
        for table in facts.tables
    )


@contextmanager
def _mapped(engine: Path) -> Iterator[MappedFile]:
    try:
        file = MappedFile(engine)
    except (OSError, ValueError) as error:
        what = "there is nothing in it" if isinstance(error, ValueError) else f"cannot be mapped ({error})"
        raise BadInput(what, where=str(engine), fix="Give an engine as TensorRT serialised it.") from None
    try:
        yield file
    finally:
        file.close()


def _groups(tables: tuple[ObservedTable, ...], claims: tuple[Claims, ...]) -> tuple[CarriedGroup, ...]:
    """The tables as the buckets of all layers; of a model whose layers are of several kinds each by itself,
    those that are as somebody says first.
    """
    clues = clues_of(claims)
    found = tuple(carried_bucket(table, clues) for table in tables)
    if not found:
        return ()
    if all(claim.kinds == 1 for claim in claims):
        return (CarriedGroup(layers="all layers", source=BYTES, buckets=found),)
    groups = [CarriedGroup(layers="some layers", source=BYTES, buckets=(bucket,)) for bucket in found]
    main = main_group(groups, claims)
    return (main, *(group for group in groups if group is not main))


def _findings(
    group: CarriedGroup, own: tuple[Claims, ...], references: tuple[Claims, ...], *, disagrees: bool = False
) -> Iterator[Finding]:
    """disagrees: whether it has been said already that it is not what its own claims say."""
    for claim in references if disagrees else (*own, *references):
        yield from claim_findings(claim, group)
    contexts = [claim.context for claim in (*own, *references) if claim.context is not None]
    known = any(claim.scaling is not None for claim in (*own, *references))
    yield from group_findings(group, contexts[:1], judge_temperature=not known)
    original = next((c.original_context for c in (*references, *own) if c.original_context), None)
    if len(group.buckets) == 1 and contexts and original is not None and contexts[0] <= original:
        yield from context_findings(group.buckets[0].fit, original, contexts[0], "the tables' length")


def _bare(engine: Path, references: tuple[Claims, ...]) -> Inspected:
    """An engine by its bytes alone."""
    with _mapped(engine) as file:
        tables, header = find_tables(file), read_header(file)
    groups = _groups(tables, references)
    unknown = Finding(
        code="tables-unknown",
        severity="warning",
        message="no tables of cos and sin were found in its bytes: what it turns by is unknown",
        remedy="Look at the ONNX model that it was built from.",
    )
    findings = without_repeats(_findings(groups[0], (), references)) if groups else (unknown,)
    version = "" if header is None else f", {header.version}"
    return Inspected(
        target="tensorrt",
        title=f"TensorRT engine without a sidecar{version}",
        identity={} if header is None else {"runtime_version": header.version},
        groups=groups,
        claims=references,
        details={},
        findings=findings,
    )


def inspect_engine(path: Path, references: tuple[Claims, ...] = ()) -> Inspected:
    """An engine or its directory. Raises BadInput where it is none. Runs nothing."""
    directory = path if path.is_dir() else path.parent
    engine = directory / ENGINE_FILE if path.is_dir() else path
    if (not is_engine(directory) or engine.name != ENGINE_FILE) and engine.is_file():
        return _bare(engine, references)
    facts = read_engine_facts(directory)
    identity = _identity(facts)
    plan, graph = facts.sidecar["plan"], facts.sidecar["graph"]
    tables = _by_sidecar(facts)
    if not tables:
        with _mapped(engine) as file:
            tables = find_tables(file)
    pairs = len(tables[0].observation.inv_freq) if tables else 1
    record = recorded_claims({**plan, "graph": graph}, 2 * pairs, "the sidecar")
    groups = _groups(tables, (record, *references))
    findings = list(facts.findings)
    if groups:
        disagrees = bool(facts.findings)
        findings += without_repeats(_findings(groups[0], (record,), references, disagrees=disagrees))
    return Inspected(
        target="tensorrt",
        title=f"TensorRT engine, {graph.get('dtype')}",
        identity=identity,
        groups=groups,
        claims=(record, *references),
        details=dict(_shown(identity)),
        findings=tuple(findings),
    )
