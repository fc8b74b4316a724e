"""A plan whose correction range is not rounded, for an architecture that rounds it always (gpt-oss).

Nothing says such a plan to llama.cpp exactly. Where a user allows that, the file carries the rounded one, and
what that costs is measured, said and recorded: a check against the checkpoint still says that it is another.
"""

from dataclasses import replace

import numpy as np

from yarnconv.errors import Inexpressible
from yarnconv.plan import ConversionPlan, Departure
from yarnconv.rope.scaling import Yarn
from yarnconv.rope.tables import buckets
from yarnconv.rope_plan import RopeGroup
from yarnconv.targets.gguf.layered_rope import layered_encodings
from yarnconv.targets.gguf.refusals import runtime_of
from yarnconv.targets.gguf.rope import FREQUENCY_TOLERANCE

OPTION = "--allow-runtime-truncation"


def _rounded(group: RopeGroup, scaling: Yarn) -> RopeGroup:
    if group.scaling != scaling:
        return group
    made = replace(scaling, truncate=True)
    return replace(group, scaling=made, buckets=buckets(made))


def with_runtime_truncation(plan: ConversionPlan) -> ConversionPlan:
    """The plan as llama.cpp rounds it, where it cannot be said otherwise; any other plan as it is."""
    main = plan.rope.main
    if not isinstance(main, Yarn) or main.truncate:
        return plan
    try:
        layered_encodings(plan, runtime_of(plan))
    except Inexpressible:
        pass
    else:
        return plan
    groups = tuple(_rounded(group, main) for group in plan.rope.groups)
    rounded = replace(plan, rope=replace(plan.rope, groups=groups, main=replace(main, truncate=True)))
    wanted = plan.rope.main_group.buckets[-1].inv_freq
    off = rounded.rope.main_group.buckets[-1].inv_freq / wanted - 1.0
    wrong = int((np.abs(off) > FREQUENCY_TOLERANCE).sum())
    worst = float(off[np.argmax(np.abs(off))])
    said = (
        f"llama.cpp rounds the correction range, and the plan has truncate = false: {wrong} of {len(off)} "
        f"frequencies are off, by up to {100 * worst:+.1f} %, as {OPTION} allows. `yarnconv check` judges "
        "the file against that with --truncate, and says without it that it is another model."
    )
    facts = {"frequencies": len(off), "wrong": wrong, "largest_relative_error": worst}
    return replace(rounded, departure=Departure(name="runtime_truncation", said=said, facts=facts))
