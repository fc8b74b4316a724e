"""The check of an ONNX model that somebody else exported: its tensors are called as its exporter likes.

The model itself is run (`foreign_structure`), and what it turns by is read from its numbers. Its weights are
judged by what they make: a model whose logits are the checkpoint's computes with the checkpoint's weights, as
far as the tolerance tells. Of quantised weights nothing is known, and that is what is said.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.observed_facts import ObservedFacts, compare_observed
from yarnconv.targets.onnx.placement import StoredWeight
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.verify.expectation import Expectation
from yarnconv.verify.narrow import NARROW
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.onnx.foreign_structure import UNBOUND, Numbers, judge_structure, read_numbers
from yarnconv.verify.reference import reference_version
from yarnconv.verify.report import CheckReport
from yarnconv.verify.structure import Judged
from yarnconv.verify.verdict import Verdict, conclude_facts
from yarnconv.verify.weights import left_out


def is_foreign(plan: ConversionPlan, model: OnnxModel, weights: Mapping[str, StoredWeight | None]) -> bool:
    """Whether a model has another form than ours: most tensors of its layers are called otherwise, or nothing
    in it is what a float32 copy is made of.
    """
    of_layers = [weights[b.expected.name] for b in plan.bindings if b.expected.layer is not None]
    bound = sum(weight is not None for weight in of_layers)
    turns = any(node.op_type == "RotaryEmbedding" for node in model.proto.graph.node)
    return 2 * bound < len(of_layers) or model.cache is None or not turns


def _judge_weights(case: Case, numbers: Numbers, judged: Judged) -> Verdict:
    """By what they make: all layers were run, so logits that are the checkpoint's are made with its weights,
    as far as the tolerance tells. Of the embedding that is said of the rows that were looked up.
    """
    if (verdict := left_out(case.plan, case.options.coverage)) is not None:
        return verdict
    if numbers.codes is not None:
        reason = f"{UNBOUND}, and quantised numbers ({numbers.codes}) hide them in its logits"
        return Verdict(outcome="not_judged", reason=reason)
    if judged.verdict.outcome != "holds":
        return Verdict(outcome="not_judged", reason=f"{UNBOUND}, and its logits do not show them")
    if case.options.coverage == "all":
        return Verdict(outcome="not_judged", reason=f"{UNBOUND}, so that not every value can be compared")
    layers, rows = len(case.plan.description.layers), len(np.unique(case.tokens))
    kind = NARROW.get(numbers.element, "float32")
    within = min(window.tolerance for window in judged.windows)  # every one holds
    reason = (
        f"its logits are the checkpoint's, as far as {kind} tells (to within {within:.1g}); all {layers} "
        f"layers were run, and {rows} rows of the embedding ({UNBOUND})"
    )
    return Verdict(outcome="holds", reason=reason)


def _judge_metadata(observed: ObservedFacts) -> Verdict:
    """What it turns by; not judged where some of that was not read."""
    verdict = conclude_facts(observed.facts)
    if observed.unread is None or verdict.outcome == "fails":
        return verdict
    return Verdict(outcome="not_judged", reason=observed.unread)


def judge_foreign(case: Case, expectation: Expectation, reference: Path) -> CheckReport:
    """The report on a model of another form than ours. case.runner: one that fills what the graph declares.

    Raises BadInput where fewer than all layers are asked for, and RuntimeCrashed.
    """
    plan, options = case.plan, case.options
    every = len(plan.description.layers)
    if options.layers not in {None, 0, every}:
        what = f"{UNBOUND}: all {every} layers are run, or none"
        raise BadInput(what, where="--layers", fix="Leave it out.")
    numbers = read_numbers(case.artefact)
    observed = compare_observed(plan, case.artefact, case.max_context)
    judged, as_is = judge_structure(case, numbers, observed)
    report = CheckReport(
        artifact=str(case.artefact.path),
        reference=str(reference),
        expected_from=expectation.source,
        expected=plan.rope,
        runtime={
            "name": case.runner.name,
            "version": case.runner.version,
            "reference": reference_version(options.computing),
        },
        seed=options.seed,
        layers=every,
        all_layers=every,
        structure=judged.verdict,
        weights=_judge_weights(case, numbers, judged),
        metadata=_judge_metadata(observed),
        windows=judged.windows,
        keys=observed.facts,
        tensors=(),
        as_is=as_is,
        diagnosis=judged.diagnosis,
        ran=f"the model itself, all {every} layers, against the checkpoint's own weights",
    )
    if report.parity is not None:  # a remark on a parity that holds would say how far it does
        return report
    said = f"it is of another maker's form: {UNBOUND}, so that it can only be run as a whole"
    return replace(report, remark=said)
