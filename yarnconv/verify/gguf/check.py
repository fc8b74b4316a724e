"""The whole check of a GGUF: metadata, weights and structure, each judged on its own."""

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from yarnconv.artifact import termination_as_interrupt
from yarnconv.checkpoint.checkpoint import Checkpoint
from yarnconv.errors import BadInput, Inexpressible, NotJudged
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress, Silent
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import is_dynamic
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.gguf.placement import made_tensors, placements
from yarnconv.targets.gguf.reader import GgufFile, open_gguf
from yarnconv.targets.gguf.refusals import runtime_of, runtimes_of, structure_refusals
from yarnconv.targets.gguf.rope_reading import compare_metadata
from yarnconv.targets.gguf.runtime import RuntimeArchitecture
from yarnconv.targets.record import RECORD_KEY
from yarnconv.verify.case import CheckOptions, choose_tokens, judged_layers, random_tokens
from yarnconv.verify.components import require
from yarnconv.verify.diagnosis import with_weights
from yarnconv.verify.expectation import expect, open_reference
from yarnconv.verify.gguf.case import Case
from yarnconv.verify.gguf.structure import judge_structure, run_as_is
from yarnconv.verify.gguf.weights import judge_weights
from yarnconv.verify.reference import reference_version
from yarnconv.verify.report import CheckReport, without_checkpoint
from yarnconv.verify.runners.llama_cpp import LlamaCpp
from yarnconv.verify.structure import NOT_RUN, Judged
from yarnconv.verify.verdict import Verdict, conclude_facts
from yarnconv.worker import RuntimeRefused

OUTPUT_HEAD = "output.weight"


def _judge_metadata(
    plan: ConversionPlan, runtime: RuntimeArchitecture, artefact: GgufFile
) -> tuple[Verdict, Sequence[FactComparison]]:
    try:
        keys = compare_metadata(plan, runtime, artefact)
    except Inexpressible as error:
        if is_dynamic(plan.rope.main):  # no GGUF holds it, so there is nothing to judge
            fix = "A plain file with presets is checked with --method none; presets are not judged."
            raise Inexpressible(error.what, where=error.where, fix=fix) from None
        return Verdict(outcome="fails", reason=f"no keys can say the plan: {error.what}"), ()
    except NotJudged as error:
        return Verdict(outcome="not_judged", reason=str(error)), ()
    return conclude_facts(keys), keys


def _with_head_of_its_own(plan: ConversionPlan, artefact: GgufFile) -> ConversionPlan:
    """The plan of a tied model for an artefact that holds the embedding a second time, as its head: llama.cpp
    computes with that one, so it is judged like any other tensor.
    """
    if not plan.description.tied_embeddings or OUTPUT_HEAD not in artefact.tensors:
        return plan
    return plan.with_untied_head()


def _runtime(plan: ConversionPlan, artefact: GgufFile) -> RuntimeArchitecture:
    """The file's own architecture, where it may be one of the plan's family."""
    for runtime in runtimes_of(plan):
        if artefact.architecture == runtime.name:
            return runtime
    raise BadInput(
        f"it is a model of llama.cpp's architecture {artefact.architecture}, the reference is one of "
        f"{runtime_of(plan).name}",
        where=artefact.path.name,
        fix="Give the checkpoint that it was made from.",
    )


def _check_open(
    runner: LlamaCpp,
    artefact: GgufFile,
    checkpoint: Checkpoint,
    reference: Path,
    request: RopeRequest,
    options: CheckOptions,
    progress: Progress,
) -> CheckReport:
    expectation = expect(checkpoint, request, artefact.scalar(RECORD_KEY, str))
    plan = _with_head_of_its_own(expectation.plan, artefact)
    runtime = _runtime(plan, artefact)
    if refusals := structure_refusals(plan, runtime):
        raise refusals[0]
    vocab_size, refused = plan.description.vocab_size, None
    try:
        tokens = choose_tokens(options, vocab_size, partial(runner.tokenize, artefact.path))
    except RuntimeRefused as error:
        tokens, refused = random_tokens(vocab_size, options.seed), error.what
    case = Case(
        plan=plan,
        runtime=runtime,
        artefact=artefact,
        places=placements(plan, runtime),
        made=made_tensors(plan, runtime),
        tokens=tokens,
        layers=judged_layers(plan, options.layers),
        options=options,
        runner=runner,
        progress=progress,
    )
    metadata, keys = _judge_metadata(plan, runtime, artefact)
    weights, tensors = judge_weights(case)
    if refused is None:
        judged = judge_structure(case)
    else:
        judged = Judged(verdict=Verdict(outcome="fails", reason=refused))
    structure = judged.verdict
    gc.collect()  # a transformers model is a cycle, and its weights are the float32 copy's pages
    as_is = NOT_RUN
    if judged.windows:
        try:
            as_is = run_as_is(case)
        except RuntimeRefused as error:
            structure = Verdict(outcome="fails", reason=f"the file itself: {error.what}")
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
        all_layers=case.all_layers,
        structure=structure,
        weights=weights,
        metadata=metadata,
        windows=judged.windows,
        keys=keys,
        tensors=tensors,
        as_is=as_is,
        diagnosis=with_weights(judged.diagnosis, tensors),
    )
    return without_checkpoint(report) if checkpoint.described else report


def check_gguf(
    artefact: Path,
    checkpoint: Path,
    request: RopeRequest,
    options: CheckOptions,
    progress: Progress | None = None,
) -> CheckReport:
    """Judge a GGUF against the checkpoint it was made from, or its config.json, and the plan it should
    carry.

    Raises BadInput where one of them cannot be read, Inexpressible where the plan is none that a GGUF can
    carry, MissingComponent, and RuntimeCrashed where llama.cpp dies.
    """
    require("check,llama", "torch", "transformers", "llama_cpp")
    with (
        termination_as_interrupt(),
        open_gguf(artefact) as opened,
        open_reference(checkpoint) as source,
        LlamaCpp() as runner,
    ):
        return _check_open(runner, opened, source, checkpoint, request, options, progress or Silent())
