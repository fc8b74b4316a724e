"""The whole check of an extended checkpoint: metadata, weights and structure, each judged on its own."""

import gc
from functools import partial
from pathlib import Path

from yarnconv.artifact import termination_as_interrupt
from yarnconv.checkpoint.checkpoint import Checkpoint, open_checkpoint
from yarnconv.checkpoint.json_files import MEBIBYTE, read_bytes
from yarnconv.checkpoint.quantised import read_quantisation
from yarnconv.progress import Progress, Silent
from yarnconv.rope.request import RopeRequest
from yarnconv.rope_plan import plan_rope
from yarnconv.targets.hf.facts import compare_metadata
from yarnconv.targets.hf.files import CONFIG_FILE, RECORD_FILE
from yarnconv.targets.hf.target import part_refusals, plan_refusals
from yarnconv.verify.case import CheckOptions, choose_tokens, judged_layers, tokenize_beside
from yarnconv.verify.components import require
from yarnconv.verify.diagnosis import with_weights
from yarnconv.verify.expectation import expect, open_reference
from yarnconv.verify.hf.case import Case
from yarnconv.verify.hf.structure import NAME, judge_structure, run_as_is
from yarnconv.verify.hf.weights import judge_weights
from yarnconv.verify.reference import computed_keys, reference_version
from yarnconv.verify.report import CheckReport, without_checkpoint
from yarnconv.verify.structure import NOT_RUN, with_whole
from yarnconv.verify.verdict import conclude_facts

DEPTH_AND_VOCABULARY = frozenset({"model_type", "num_hidden_layers", "vocab_size"})


def is_checkpoint(path: Path) -> bool:
    """Whether it is a directory that transformers would load."""
    return (path / CONFIG_FILE).is_file()


def _record(artefact: Path) -> str | None:
    """What it says it was made with."""
    path = artefact / RECORD_FILE
    return read_bytes(path, MEBIBYTE).decode("utf-8", errors="replace") if path.exists() else None


def _check_config(artefact: Checkpoint) -> None:
    """Refuse what is no model of ours: only what has been checked reaches transformers."""
    read_quantisation(artefact.config)
    if refusals := part_refusals(artefact.config):
        raise refusals[0]
    plan_rope(artefact.config, RopeRequest(use_profile=False))


def _check_open(
    artefact: Checkpoint,
    checkpoint: Checkpoint,
    reference: Path,
    request: RopeRequest,
    options: CheckOptions,
    progress: Progress,
) -> CheckReport:
    _check_config(artefact)
    expectation = expect(checkpoint, request, _record(artefact.directory))
    plan = expectation.plan
    if refusals := plan_refusals(plan):
        raise refusals[0]
    case = Case(
        plan=plan,
        artefact=artefact,
        tokens=choose_tokens(
            options, plan.description.vocab_size, partial(tokenize_beside, artefact.directory)
        ),
        layers=judged_layers(plan, options.layers),
        options=options,
        progress=progress,
    )
    keys = compare_metadata(plan, artefact, computed_keys(plan.family) | DEPTH_AND_VOCABULARY)
    weights, tensors = judge_weights(case)
    judged = judge_structure(case)
    gc.collect()  # a transformers model is a cycle
    as_is = run_as_is(case) if judged.windows else NOT_RUN
    structure = with_whole(judged.verdict, as_is.problem)
    version = reference_version(options.computing)
    report = CheckReport(
        artifact=str(artefact.directory),
        reference=str(reference),
        expected_from=expectation.source,
        expected=plan.rope,
        runtime={"name": NAME, "version": version.split(",")[0], "reference": version},
        seed=options.seed,
        layers=case.layers,
        all_layers=len(plan.description.layers),
        structure=structure,
        weights=weights,
        metadata=conclude_facts(keys),
        windows=judged.windows,
        keys=keys,
        tensors=tensors,
        as_is=as_is,
        diagnosis=with_weights(judged.diagnosis, tensors),
    )
    return without_checkpoint(report) if checkpoint.described else report


def check_hf(
    artefact: Path,
    checkpoint: Path,
    request: RopeRequest,
    options: CheckOptions,
    progress: Progress | None = None,
) -> CheckReport:
    """Judge an extended checkpoint against the one it was made from, or that one's config.json, and the
    plan it should carry.

    Raises BadInput where one of them cannot be read, Inexpressible where no config.json can say the plan, and
    MissingComponent.
    """
    require("check", "torch", "transformers")
    with (
        termination_as_interrupt(),
        open_checkpoint(artefact) as opened,
        open_reference(checkpoint) as source,
    ):
        return _check_open(opened, source, checkpoint, request, options, progress or Silent())
