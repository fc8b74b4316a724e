"""An engine run on a GPU, as it is: all its layers, in its own types.

It computes in fp16 or bf16, so it is held to what such arithmetic does to the reference itself.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from yarnconv.errors import NotJudged
from yarnconv.rope.tables import Float32Array
from yarnconv.verify.compare import Sharpness
from yarnconv.verify.narrow import widened
from yarnconv.verify.onnx.case import Case
from yarnconv.verify.onnx.structure import angle_sharpness, bucket_passages, numbers_beyond_the_tables
from yarnconv.verify.passages import Passage
from yarnconv.verify.reference import Reference
from yarnconv.verify.report import AsIs
from yarnconv.verify.runners.runner import Runner
from yarnconv.verify.structure import AS_IS_INSIDE, AS_IS_PREFIX, as_is
from yarnconv.worker import RuntimeRefused

SHARE_OF_MEMORY = 0.5  # for a reference of all layers


def narrow_sharpness(case: Case, reference: Reference, passage: Passage, wanted: Float32Array) -> Sharpness:
    """What a passage can tell of an engine whose products are made in its cache's type."""
    exact = angle_sharpness(case, reference, passage, wanted)
    element = case.artefact.cache.element if case.artefact.cache is not None else ""
    return widened(exact, reference, passage, wanted, element)


def stored_weights(case: Case) -> dict[str, Float32Array]:
    """The artefact's weights in float32, in the checkpoint's layout."""
    found = {}
    for name, weight in case.weights.items():
        assert weight is not None  # the structure was judged with them
        values = weight.float32(0, weight.shape[0])
        found[name] = np.array(values.T if weight.stored.transposed else values, order="C")
    return found


def execute(runner: Runner, directory: Path, case: Case, same_weights: bool) -> AsIs:
    """Run the engine in every bucket, prefill and decode, and hold it against the reference of all layers.

    Raises RuntimeRefused where TensorRT does not load or run it, or it gives numbers where there are no rows.
    """
    run = partial(runner.logits, directory)
    try:
        problem = numbers_beyond_the_tables(case, run, case.tokens[:3])
    except NotJudged as error:
        return not_executed(error.what, case, same_weights)
    if problem is not None:
        raise RuntimeRefused(f"the engine: {problem}")
    passages: Sequence[Passage] = list(
        bucket_passages(case, case.tokens, far_ends=False, prefix=AS_IS_PREFIX, inside=AS_IS_INSIDE)
    )
    return as_is(
        run,
        case.plan,
        passages,
        partial(narrow_sharpness, case),
        size=0,  # of the machine's own memory
        weights=partial(stored_weights, case),
        share_of_memory=SHARE_OF_MEMORY,
        runtime=runner.name,
        computing=case.options.computing,
        progress=case.progress,
    )


def not_executed(reason: str, case: Case, same_weights: bool) -> AsIs:
    """Of an engine that no GPU here runs."""
    return AsIs(windows=(), note=f"the engine was not executed: {reason}")
