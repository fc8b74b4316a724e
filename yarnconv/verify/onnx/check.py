"""The whole check of an ONNX model: metadata, weights and structure, each judged on its own."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from yarnconv.artifact import termination_as_interrupt
from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress, Silent
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx.extension import RUNTIME_OPERATORS
from yarnconv.targets.onnx.placement import StoredWeight, stored_weights
from yarnconv.targets.onnx.reader import OnnxModel, open_onnx
from yarnconv.targets.onnx.rope_reading import compare_metadata
from yarnconv.targets.onnx.target import plan_refusals
from yarnconv.targets.record import RECORD_KEY, read_record
from yarnconv.verify.case import CheckOptions, choose_tokens, judged_layers, tokenize_beside
from yarnconv.verify.components import require
from yarnconv.verify.diagnosis import with_weights
from yarnconv.verify.expectation import Expectation, expect, open_reference
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.onnx.foreign import is_foreign, judge_foreign
from yarnconv.verify.onnx.structure import judge_structure, run_as_is
from yarnconv.verify.onnx.weights import judge_weights
from yarnconv.verify.reference import reference_version
from yarnconv.verify.report import AsIs, CheckReport, without_checkpoint
from yarnconv.verify.runners.foreign_onnx import ForeignOnnxRuntime
from yarnconv.verify.runners.onnx_runtime import OnnxRuntime, Provider
from yarnconv.verify.structure import NOT_RUN, with_whole
from yarnconv.verify.verdict import conclude_facts
from yarnconv.worker import RuntimeRefused


def _expected_context(expectation: Expectation, asked: int | None, record: str | None) -> int:
    """Positions that the tables should reach: as asked, else the whole target context. What the artefact
    records only counts where the rope options come from there as well.
    """
    target = expectation.plan.rope.target_context
    if asked is not None:
        if not 1 <= asked <= target:
            raise BadInput(
                f"{asked} is not between 1 and the target context of {target}", where="--max-context"
            )
        return asked
    if expectation.source == "provenance" and record is not None:
        graph = read_record(record).get("graph")
        recorded = graph.get("max_context") if isinstance(graph, dict) else None
        if isinstance(recorded, int) and not isinstance(recorded, bool) and 1 <= recorded <= target:
            return recorded
    return target


def _with_head_of_its_own(plan: ConversionPlan, artefact: OnnxModel) -> ConversionPlan:
    """The plan of a tied model for a graph that holds the embedding a second time, as its head, as one of 4
    bits does: the runtime computes with that one, so it is judged like any other tensor.
    """
    head_name = plan.family.tensors["output_head"]
    if not plan.description.tied_embeddings or head_name not in artefact.tensors:
        return plan
    return plan.with_untied_head()


def _case(
    expectation: Expectation,
    artefact: OnnxModel,
    weights: dict[str, StoredWeight | None],
    options: CheckOptions,
    max_context: int | None,
    runner: OnnxRuntime,
    progress: Progress,
) -> Case:
    """What the check works on. Raises BadInput for options that do not fit the model."""
    plan = expectation.plan
    return Case(
        plan=plan,
        artefact=artefact,
        weights=weights,
        max_context=_expected_context(expectation, max_context, artefact.metadata(RECORD_KEY)),
        tokens=choose_tokens(
            options, plan.description.vocab_size, partial(tokenize_beside, artefact.directory)
        ),
        layers=judged_layers(plan, options.layers),
        options=options,
        runner=runner,
        progress=progress,
    )


RunWhole = Callable[[Case, bool], AsIs]  # the second: whether its weights are the checkpoint's


def _run_as_is(case: Case, same_weights: bool) -> AsIs:
    return run_as_is(case, same_weights=same_weights)


def judge_graph(
    runner: OnnxRuntime,
    artefact: OnnxModel,
    checkpoint: Checkpoint,
    reference: Path,
    request: RopeRequest,
    options: CheckOptions,
    max_context: int | None,
    progress: Progress,
    run_whole: RunWhole = _run_as_is,
) -> tuple[CheckReport, Case]:
    """The report on an open graph, and what it was made of.

    max_context: positions that its tables should reach, None for the whole target context. run_whole: runs
    what was made of the graph, all layers, once its float32 copy was judged; raises RuntimeRefused.
    """
    record = artefact.metadata(RECORD_KEY)
    expectation = expect(checkpoint, request, record)
    plan = _with_head_of_its_own(expectation.plan, artefact)
    if refusals := plan_refusals(plan):
        raise refusals[0]
    weights_there = stored_weights(plan, artefact)
    expectation = replace(expectation, plan=plan)
    case = _case(expectation, artefact, weights_there, options, max_context, runner, progress)
    keys = compare_metadata(plan, artefact, case.max_context)
    weights, tensors = judge_weights(case)
    judged = judge_structure(case)
    gc.collect()  # a transformers model is a cycle, and its weights are the float32 copy's pages
    as_is, problem = NOT_RUN, None
    if judged.windows:
        try:
            as_is = run_whole(case, weights.outcome == "holds")
            problem = as_is.problem
        except RuntimeRefused as error:
            problem = error.what
    report = CheckReport(
        artifact=str(artefact.path),
        reference=str(reference),
        expected_from=expectation.source,
        expected=plan.rope,
        runtime={
            "name": runner.name,
            "version": runner.version,
            "reference": reference_version(options.computing),
        },
        seed=options.seed,
        layers=case.layers,
        all_layers=len(plan.description.layers),
        structure=with_whole(judged.verdict, problem),
        weights=weights,
        metadata=conclude_facts(keys),
        windows=judged.windows,
        keys=keys,
        tensors=tensors,
        as_is=as_is,
        diagnosis=with_weights(judged.diagnosis, tensors),
    )
    return without_checkpoint(report) if checkpoint.described else report, case


def check_onnx(
    artefact: Path,
    checkpoint: Path,
    request: RopeRequest,
    options: CheckOptions,
    progress: Progress | None = None,
    *,
    max_context: int | None = None,
    provider: Provider = "cpu",
) -> CheckReport:
    """Judge an ONNX model against the checkpoint it was made from, or its config.json, and the plan it should
    carry.

    max_context: positions that its tables should reach, None for the whole target context. Raises BadInput
    where one of them cannot be read, Inexpressible where the plan is none that a graph can carry,
    MissingComponent, and RuntimeCrashed where ONNX Runtime dies.
    """
    require("check,onnx", "torch", "transformers", "onnx", "onnxruntime")
    shown = progress or Silent()
    with (
        termination_as_interrupt(),
        open_onnx(artefact, unknown=RUNTIME_OPERATORS) as opened,
        open_reference(checkpoint) as source,
    ):
        expectation = expect(source, request, opened.metadata(RECORD_KEY))
        weights = stored_weights(expectation.plan, opened)
        if is_foreign(expectation.plan, opened, weights):
            with ForeignOnnxRuntime(provider, expectation.plan) as runner:
                case = _case(expectation, opened, weights, options, max_context, runner, shown)
                return judge_foreign(case, expectation, checkpoint)
        with OnnxRuntime(provider) as own_runner:
            return judge_graph(own_runner, opened, source, checkpoint, request, options, max_context, shown)[
                0
            ]
