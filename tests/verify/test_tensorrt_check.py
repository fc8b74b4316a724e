"""What an engine is held to when it is executed, measured with the same graph on a runtime that needs no GPU.

ONNX Runtime's CPU computes the fp16 graph in fp16. It is no engine; but how such arithmetic errs beside the
reference's own, and that wrong plans show through it, can be seen on it.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.support.models import make_checkpoint
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion
from yarnconv.progress import Silent
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx.placement import stored_weights as weights_of
from yarnconv.targets.onnx.reader import open_onnx
from yarnconv.verify.case import CheckOptions, random_tokens
from yarnconv.verify.compare import position_errors
from yarnconv.verify.narrow import MARGIN
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.onnx.structure import bucket_passages
from yarnconv.verify.report import AsIs
from yarnconv.verify.runners.onnx_runtime import OnnxRuntime
from yarnconv.verify.structure import AS_IS_INSIDE, AS_IS_PREFIX, References
from yarnconv.verify.tensorrt.check import _judge_run
from yarnconv.verify.tensorrt.execution import execute, stored_weights
from yarnconv.verify.verdict import Verdict

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
FP16 = ("--kv", "concat", "--dtype", "fp16")
DYNAMIC = ("--factor", "4", "--method", "dynamic-yarn")


@contextmanager
def case_of(directory, checkpoint, **request):
    """What `check` works on, with fp16 arithmetic on the CPU."""
    with open_checkpoint(checkpoint) as source, open_onnx(directory) as graph, OnnxRuntime() as runner:
        plan = plan_conversion(source, RopeRequest(factor=4.0, **request))
        yield Case(
            plan=plan,
            artefact=graph,
            weights=weights_of(plan, graph),
            max_context=1024,
            tokens=random_tokens(512, 0),
            layers=3,
            options=CheckOptions(),
            runner=runner,
            progress=Silent(),
        )


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_how_far_narrow_arithmetic_may_be_off(family, sharpness, yarnconv, tmp_path):
    """By as much as the reference is when it multiplies in the same type, and MARGIN times that. Measured:
    0.39 to 1.77 times, with noise from 1e-3 (flat attention) to 6e-2 (sharp)."""
    checkpoint = make_checkpoint(tmp_path / "model", family, sharpness=sharpness)
    assert yarnconv("onnx", checkpoint, *DYNAMIC, *FP16, "-o", tmp_path / "onnx")[0] == 0
    with case_of(tmp_path / "onnx", checkpoint, method="dynamic-yarn") as case:
        sizes = {"prefix": AS_IS_PREFIX, "inside": AS_IS_INSIDE}
        passages = list(bucket_passages(case, case.tokens, far_ends=False, **sizes))
        references = References(case.plan, stored_weights(case), layers=3)
        ratios = []
        for passage, found in zip(passages, case.runner.logits(case.artefact.path, passages), strict=True):
            reference = references.of(passage)
            wanted = reference.logits(passage)
            with reference.products_in("float16"):
                narrow = reference.logits(passage)
            noise = position_errors(narrow, wanted).max()
            assert noise > 5e-4
            ratios.append(position_errors(found, wanted).max() / noise)
        assert min(ratios) > 0.2
        assert max(ratios) < MARGIN * 2 / 3


def test_what_follows_from_an_engines_run(onnx_artefacts, checkpoints):
    """Its own windows decide: none of them, or none that can tell, and it is not judged."""
    graph = Verdict(outcome="holds", reason="9 windows")
    directory = onnx_artefacts("llama", "--factor", "4", *FP16)
    with case_of(directory, checkpoints("llama")) as case:
        right = execute(case.runner, case.artefact.path, case, True)
    blind = replace(right, windows=[replace(window, blind="too sharp") for window in right.windows])
    wrong = replace(right, windows=[replace(right.windows[0], first_bad_position=3), *right.windows[1:]])
    cases = {"holds": right, "fails": wrong, "not_judged": blind}
    for outcome, run in cases.items():
        assert _judge_run(graph, run).outcome == outcome
    assert _judge_run(graph, AsIs(windows=(), note="not compared")).outcome == "not_judged"
    assert _judge_run(replace(graph, outcome="fails"), right).outcome == "fails"


@pytest.mark.parametrize(
    ("made", "expected", "holds"),
    [
        ("dynamic-yarn", "dynamic-yarn", True),
        ("yarn", "yarn", True),
        ("linear", "linear", True),
        ("ntk-by-parts", "yarn", False),  # the temperature is missing
        ("none", "yarn", False),  # and beyond 256 it has no rows at all
        ("yarn", "linear", False),
    ],
)
@pytest.mark.parametrize("last_only", [True, False])
def test_wrong_plans_show_through_it(made, expected, holds, last_only, onnx_artefacts, checkpoints):
    options = ("--method", made, *(() if made == "none" else ("--factor", "4")), *FP16)
    form = ("--last-token-only",) if last_only else ()
    directory = onnx_artefacts("llama", *options, *form)
    with case_of(directory, checkpoints("llama"), method=expected) as case:
        found = execute(case.runner, case.artefact.path, case, True)
    assert (found.problem is None) == holds, found.problem
    assert {window.blind for window in found.windows} == {None}
    assert len({window.phase for window in found.windows}) == 2
