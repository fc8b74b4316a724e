"""The whole check of an engine.

The graph that was parsed lies beside it and is judged as any ONNX model is, with the weights that the
checkpoint lends. What the engine's own bytes show comes to the metadata. The engine itself is executed where
there is a GPU for it; where there is none, its structure is not judged, and the report says so.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from yarnconv.artifact import termination_as_interrupt
from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.errors import BadInput
from yarnconv.progress import Progress, Silent
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx.quantisation import SCHEMES
from yarnconv.targets.onnx.reader import OnnxModel, missing_files, open_onnx
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.tensorrt.builder import RuntimeName
from yarnconv.targets.tensorrt.engine_bytes import read_header
from yarnconv.targets.tensorrt.engine_reading import compare_engine, open_engine
from yarnconv.targets.tensorrt.engine_weights import find_weights, sought_weights
from yarnconv.targets.tensorrt.files import ENGINE_FILE, MODEL_FILE
from yarnconv.targets.tensorrt.sidecar import read_sidecar
from yarnconv.targets.tensorrt.source import CACHE_TYPES
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.components import require
from yarnconv.verify.expectation import open_reference
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.onnx.check import judge_graph
from yarnconv.verify.report import AsIs, CheckReport, without_checkpoint
from yarnconv.verify.runners.onnx_runtime import OnnxRuntime
from yarnconv.verify.runners.tensorrt import TensorRt, why_not_here
from yarnconv.verify.structure import conclude
from yarnconv.verify.tensorrt.execution import execute, not_executed
from yarnconv.verify.verdict import Verdict, conclude_facts


def _open_graph(artefact: Path, source: Checkpoint) -> AbstractContextManager[OnnxModel]:
    """The graph that was parsed, with the weights that the checkpoint lends."""
    graph = artefact / MODEL_FILE
    if source.described and (missing := missing_files(graph)):
        raise BadInput(
            f"the graph beside the engine borrows its weights from the checkpoint ({missing[0][:80]})",
            where="--reference-config",
            fix="Give the checkpoint with --reference.",
        )
    return open_onnx(graph, source.tensors)


def _judge_weights(
    report: CheckReport, directory: Path, sidecar: Mapping[str, Any], case: Case, *, executed: bool
) -> Verdict:
    """The weights of an engine, by its bytes: those of the graph beside it may be the checkpoint's own, which
    it borrows, and tell nothing. executed: whether its logits show that each stands in its place.
    """
    if report.weights.outcome != "holds":
        return report.weights
    cache = case.artefact.cache
    assert cache is not None  # the graph was judged
    file = open_engine(directory)
    try:
        element = FLOAT_TYPES[CACHE_TYPES[cache.element]]
        found = find_weights(file, sought_weights(case.plan), element, _matrix_type(case))
        of_rtx = read_header(file) is not None
    finally:
        file.close()
    count, recorded = sum(found.values()), sidecar.get("weights")
    before = recorded.get("found") if isinstance(recorded, dict) else None
    said = f"{count} of {len(found)} tensors stand in the engine's bytes (sampled rows)"
    if type(before) is int and count < before:
        return Verdict(outcome="fails", reason=f"{said}, {before} did when it was built")
    if count < len(found):
        # of TensorRT-RTX every tensor was found in every engine
        return Verdict(outcome="fails" if of_rtx else "not_judged", reason=said)
    if not executed:
        return Verdict(outcome="not_judged", reason=f"{said}; in which place each is used only a run shows")
    return Verdict(outcome="holds", reason=said)


def _matrix_type(case: Case) -> str:
    """What the matrices are stored as, by the graph."""
    kinds = {weight.stored.kind.lower() for weight in case.weights.values() if weight is not None}
    return next((name for name in SCHEMES if name in kinds), "")


def _judge_run(graph: Verdict, as_is: AsIs) -> Verdict:
    """The structure of an engine: of a graph that holds, and of the engine's own logits."""
    if graph.outcome != "holds":
        return graph
    if not as_is.windows:
        said = f"the graph that was parsed holds ({graph.reason}), but {as_is.note}"
        return Verdict(outcome="not_judged", reason=said)
    own = conclude(as_is.windows)
    return replace(own, reason=f"the engine: {own.reason}; the graph that was parsed: {graph.reason}")


def _remark(graph: CheckReport, *verdicts: Verdict) -> str | None:
    """What to make of an engine that was not run, or not compared."""
    outcomes = {verdict.outcome for verdict in verdicts if not verdict.waived}
    if graph.structure.outcome == "holds" and "fails" not in outcomes and "not_judged" in outcomes:
        return "all that can be seen without running the engine agrees"
    return None


def check_tensorrt(
    artefact: Path,
    checkpoint: Path,
    request: RopeRequest,
    options: CheckOptions,
    progress: Progress | None = None,
    *,
    max_context: int | None = None,
    workers: int = 1,
) -> CheckReport:
    """Judge an engine's directory against the checkpoint it was made from and the plan it should carry.

    max_context: positions that its tables should reach, None for the whole target context. Raises BadInput
    where one of them cannot be read, and what `check_onnx` raises.
    """
    require("check,onnx", "torch", "transformers", "onnx", "onnxruntime")
    sidecar, shown = read_sidecar(artefact), progress or Silent()
    runtime: RuntimeName = sidecar["runtime"]["name"]
    reason = why_not_here(runtime)
    with (
        termination_as_interrupt(),
        open_reference(checkpoint) as source,
        _open_graph(artefact, source) as graph,
        OnnxRuntime() as onnx_runtime,
        TensorRt(runtime) if reason is None else nullcontext() as runner,
    ):
        run = partial(execute, runner, artefact) if runner is not None else partial(not_executed, str(reason))
        report, case = judge_graph(
            onnx_runtime, graph, source, checkpoint, request, options, max_context, shown, run
        )
        structure = _judge_run(report.structure, report.as_is)
        executed = bool(report.as_is.windows) and structure.outcome == "holds"
        facts = compare_engine(artefact, sidecar, graph, case.plan, case.max_context, workers)
        keys = (*report.keys, *facts)
        weights = _judge_weights(report, artefact, sidecar, case, executed=executed)
        metadata = conclude_facts(keys)
        version = report.runtime["version"] + (f"; {runner.version}" if runner is not None else "")
        report = replace(
            report,
            artifact=str(artefact / ENGINE_FILE),
            runtime={**report.runtime, "version": version},
            structure=structure,
            weights=weights,
            keys=keys,
            metadata=metadata,
            remark=_remark(report, structure, weights, metadata),
        )
        return without_checkpoint(report) if source.described else report
