"""The whole check of an engine.

The graph that was parsed lies beside it and is judged as any ONNX model is, with the weights that the
checkpoint lends. What the engine's own bytes show comes to the metadata. The engine itself is executed where
there is a GPU for it; where there is none, its structure is not judged, and the report says so.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from yarnconv.artifact import termination_as_interrupt
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress, Silent
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx.reader import OnnxModel, open_onnx
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.tensorrt.engine_reading import compare_engine, open_engine
from yarnconv.targets.tensorrt.engine_weights import find_weights
from yarnconv.targets.tensorrt.files import ENGINE_FILE, MODEL_FILE
from yarnconv.targets.tensorrt.sidecar import read_sidecar
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.components import require
from yarnconv.verify.onnx.check import judge_graph
from yarnconv.verify.report import CheckReport
from yarnconv.verify.runners.onnx_runtime import OnnxRuntime
from yarnconv.verify.runners.tensorrt import TensorRt, why_not_here
from yarnconv.verify.tensorrt.execution import execute, not_executed
from yarnconv.verify.verdict import Verdict, conclude_facts


def _with_engine(
    report: CheckReport, directory: Path, graph: OnnxModel, plan: ConversionPlan, workers: int
) -> CheckReport:
    """The report on the graph, with what the engine's bytes say."""
    layers = len(plan.description.layers)
    facts = compare_engine(directory, read_sidecar(directory), graph, plan.rope, layers, workers)
    keys = (*report.keys, *facts)
    return replace(report, artifact=str(directory / ENGINE_FILE), keys=keys, metadata=conclude_facts(keys))


def _judge_weights(
    report: CheckReport, directory: Path, plan: ConversionPlan, sidecar: Mapping[str, Any]
) -> Verdict:
    """The weights of an engine that was not run, by its bytes: those of the graph beside it are the
    checkpoint's own, which it borrows, and tell nothing.
    """
    graph = sidecar["graph"]
    element, dtype = FLOAT_TYPES.get(str(graph.get("cache_type"))), str(graph.get("dtype"))
    if report.weights.outcome != "holds" or element is None:
        return report.weights
    file = open_engine(directory)
    try:
        tensors = [(b.expected.name, b.source) for b in plan.bindings]
        found = find_weights(file, tensors, element, dtype)
    finally:
        file.close()
    count, recorded = sum(found.values()), sidecar.get("weights")
    before = recorded.get("found") if isinstance(recorded, dict) else None
    said = f"{count} of {len(found)} tensors stand in the engine's bytes (sampled rows)"
    if type(before) is int and count < before:
        return Verdict(outcome="fails", reason=f"{said}, {before} did when it was built")
    if count < len(found):
        return Verdict(outcome="not_judged", reason=f"{said}; the others it holds in another form")
    return Verdict(outcome="holds", reason=said)


def _unproved(report: CheckReport, reason: str) -> CheckReport:
    """What holds for the graph is not proved of an engine that nobody ran."""
    if report.structure.outcome != "holds":
        return report
    said = f"the graph that was parsed holds ({report.structure.reason}), but the engine was not executed"
    return replace(report, structure=Verdict(outcome="not_judged", reason=f"{said}: {reason}"))


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
    runtime = sidecar["runtime"].get("name")
    reason = why_not_here(str(runtime))
    with (
        termination_as_interrupt(),
        open_checkpoint(checkpoint) as source,
        open_onnx(artefact / MODEL_FILE, source.tensors) as graph,
        OnnxRuntime() as onnx_runtime,
    ):
        judge = partial(judge_graph, onnx_runtime, graph, source, request, options, max_context, shown)
        if reason is not None:
            report, plan = judge(lambda case, same_weights: not_executed(reason))
            report = replace(report, weights=_judge_weights(report, artefact, plan, sidecar))
            return _unproved(_with_engine(report, artefact, graph, plan, workers), reason)
        with TensorRt(str(runtime)) as runner:
            report, plan = judge(partial(execute, runner, artefact))
            version = f"{report.runtime['version']}; {runner.version}"
            report = replace(report, runtime={**report.runtime, "version": version})
            return _with_engine(report, artefact, graph, plan, workers)
