"""An engine's own bytes, held against what stands beside it: the sidecar, and the tables of the graph."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan
from yarnconv.targets.digest import file_digest
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.onnx.genai import end_tokens
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.rope import is_dynamic
from yarnconv.targets.onnx.rope_reading import read_rotations
from yarnconv.targets.tensorrt.engine_bytes import (
    Header,
    count_profiles,
    find_array,
    missing_names,
    read_header,
)
from yarnconv.targets.tensorrt.files import ENGINE_FILE, MODEL_FILE, SIDECAR
from yarnconv.targets.tensorrt.network import input_names, output_names
from yarnconv.targets.tensorrt.sidecar import client_facts
from yarnconv.targets.tensorrt.source import CACHE_TYPES

RTX = "tensorrt-rtx"


def open_engine(directory: Path) -> MappedFile:
    """Map the engine of a directory. Raises BadInput where there is none."""
    path = directory / ENGINE_FILE
    try:
        if not path.is_file():
            raise BadInput("there is no engine in it", where=str(path), fix="Build it again.")
        return MappedFile(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be mapped ({error})", where=ENGINE_FILE, fix="Build it again.") from None


def _fact(key: str, expected: object, found: object) -> FactComparison:
    agrees = type(expected) is type(found) and expected == found
    return FactComparison(key=key, expected=str(expected), found=str(found)[:120], agrees=agrees)


def _compare_header(header: Header, size: int, sidecar: Mapping[str, Any]) -> Iterator[FactComparison]:
    """What a plan of TensorRT-RTX says in its first bytes. size: of the file."""
    key = f"{ENGINE_FILE}: header"
    yield _fact(f"{key}: size", header.size, size)
    yield _fact(f"{key}: version", sidecar["runtime"].get("version"), header.version)
    capabilities = ", ".join(sorted(map(str, sidecar["compute_capabilities"])))
    yield _fact(f"{key}: compute capabilities", capabilities, ", ".join(sorted(header.compute_capabilities)))


def _compare_tables(file: MappedFile, graph: OnnxModel, *, decisive: bool) -> Iterator[FactComparison]:
    """That every table of the graph stands in the engine, and once only."""
    layers = len({value.name for value in graph.proto.graph.output if value.name.endswith(".key")})
    used = {
        name
        for index in range(layers)
        for rotation in read_rotations(graph, index)
        if rotation is not None
        for name in (rotation.cos, rotation.sin)
        if name is not None
    }
    for name in sorted(used):
        table = graph.tensors[name]
        rows = table.shape[0] if table.element == "FLOAT" and len(table.shape) == 2 else 0
        count = len(find_array(file, table.float32(0, rows))) if rows else 0
        yield FactComparison(
            key=f"{ENGINE_FILE}: {name}",
            expected="all its bytes, once",
            found="all its bytes, once" if count == 1 else f"all its bytes, {count} times",
            agrees=count == 1,
            decisive=decisive,
        )


def _compare_client(
    sidecar: Mapping[str, Any], graph: OnnxModel, plan: ConversionPlan, max_context: int
) -> Iterator[FactComparison]:
    """What clients of the engine go by: generate.py sizes its buffers and chooses buckets by it."""
    wanted: dict[str, Any] = client_facts(plan.rope, plan.description, max_context)
    if graph.cache is not None:
        wanted["cache_type"] = CACHE_TYPES.get(graph.cache.element)
    wanted["last_token_only"] = graph.last_token_only
    found = sidecar["graph"]
    for key, expected in wanted.items():
        yield _fact(f"{SIDECAR}: graph.{key}", expected, found.get(key))
    yield _fact(f"{SIDECAR}: eos_token_ids", end_tokens(plan.config), sidecar.get("eos_token_ids"))


def compare_engine(
    directory: Path,
    sidecar: Mapping[str, Any],
    graph: OnnxModel,
    plan: ConversionPlan,
    max_context: int,
    workers: int,
) -> tuple[FactComparison, ...]:
    """What can be told of an engine that is not run. graph: the one that was parsed. max_context: positions
    that its tables should reach.
    """
    file, rope = open_engine(directory), plan.rope
    dynamic = is_dynamic(rope.main_group, rope.original_context, max_context)
    layers = len(plan.description.layers)
    names = [*input_names(layers, dynamic=dynamic), *output_names(layers)]
    try:
        # whose engine it is says its own header, not what lies beside it
        header = read_header(file)
        missing = missing_names(file, names)
        return (
            *(
                _fact(f"{name}: digest", sidecar[key].get("digest"), file_digest(directory / name, workers))
                for key, name in (("engine", ENGINE_FILE), ("graph", MODEL_FILE))
            ),
            _fact(f"{SIDECAR}: runtime is {RTX}", header is not None, sidecar["runtime"].get("name") == RTX),
            *(_compare_header(header, file.size, sidecar) if header is not None else ()),
            *_compare_client(sidecar, graph, plan, max_context),
            _fact(f"{ENGINE_FILE}: inputs and outputs", "all", f"not {missing[0]}" if missing else "all"),
            _fact(f"{ENGINE_FILE}: profiles", len(sidecar["profiles"]), count_profiles(file)),
            # NVIDIA promises nothing of the bytes; in plans of RTX the tables stood verbatim, always
            *_compare_tables(file, graph, decisive=header is not None),
        )
    finally:
        file.close()
