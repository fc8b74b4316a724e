"""llama.cpp's flags: those that make a dynamic plan of a plain file, and those that keep a cache exact.

Read in llama.cpp's source (October 2026): `llama-context.cpp` takes factor, original context and betas from
flags and then multiplies its own 1 + 0.1 ln s by the file's `rope.scaling.attn_factor`, which only
--override-kv can set from outside, even where the file has no such key. `server-context.cpp` caps a request
at the context the model was trained for: factor x original under YaRN flags, else the file's context_length.
"""

import math
from dataclasses import dataclass

import numpy as np

from yarnconv.errors import Inexpressible
from yarnconv.rope.scaling import DynamicNtk, DynamicYarn, method_name
from yarnconv.rope.tables import magnitude, reached_context, static_scalings
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.gguf.rope_keys import (
    RUNTIME_BETA_FAST,
    RUNTIME_BETA_SLOW,
    RUNTIME_COEFFICIENT,
    RopeKeys,
)

# of the attention factor; float32 rounds it by 6e-8
FACTOR_TOLERANCE = 1e-6

KEEP_CACHE_EXACT = "no-context-shift"
KEY_SHIFT_WARNING = (
    "Where llama.cpp shifts its cache it multiplies the cached keys by the attention factor once more, and "
    f"what follows is wrong: run it with --{KEEP_CACHE_EXACT} and without --cache-reuse; to Ollama send "
    '"shift": false with every request.'
)

OLLAMA_CAVEAT = (
    "Ollama was not run here: where it runs llama.cpp, that reads the plan from the GGUF; what an engine of "
    "its own makes of the RoPE keys was not checked."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchBucket:
    """One bucket of a dynamic plan, as llama.cpp serves it from a plain file.

    context: the longest request, in positions. flags: names without dashes, and their values.
    """

    factor: float
    context: int
    flags: tuple[tuple[str, str], ...]

    @property
    def command_line(self) -> str:
        """The flags as a shell takes them; numbers and fixed words only."""
        return " ".join([f"-c {self.context}", *(f"--{name} {value}" for name, value in self.flags)])


def key_shift_warning(rope: RopePlan) -> str | None:
    """What to know before llama.cpp shifts a cache under this plan; None where a shift is exact."""
    factors = {tables.attention_factor for group in rope.groups for tables in group.buckets}
    return KEY_SHIFT_WARNING if factors - {1.0} else None


def needs_flags(rope: RopePlan) -> bool:
    """Whether no GGUF holds the plan but flags of llama.cpp may say it."""
    return isinstance(rope.main, DynamicYarn | DynamicNtk)


def _granted_context(original_context: int, factor: float) -> int:
    """The context that llama.cpp reckons with under YaRN flags; float32 may cost it the last position."""
    return int(np.float32(original_context) / (np.float32(1.0) / np.float32(factor)))


def _yarn_flags(
    scaling: DynamicYarn, factor: float, attention_factor: float, context: int, keys: RopeKeys
) -> list[tuple[str, str]]:
    flags = [
        ("rope-scaling", "yarn"),
        ("rope-scale", f"{factor:.9g}"),
        ("yarn-orig-ctx", str(scaling.original_context)),
    ]
    if keys.betas or (scaling.beta_fast, scaling.beta_slow) != (RUNTIME_BETA_FAST, RUNTIME_BETA_SLOW):
        flags.append(("yarn-beta-fast", f"{scaling.beta_fast:.9g}"))
        flags.append(("yarn-beta-slow", f"{scaling.beta_slow:.9g}"))
    overrides = []
    automatic = magnitude(factor, RUNTIME_COEFFICIENT)
    if not math.isclose(attention_factor, automatic, rel_tol=FACTOR_TOLERANCE):
        overrides.append(f"{keys.name}.rope.scaling.attn_factor=float:{attention_factor / automatic:.9g}")
    if _granted_context(scaling.original_context, factor) < context:
        # a file that has the factor itself keeps its context_length
        overrides.append(f"{keys.name}.rope.scaling.factor=float:{factor:.9g}")
        overrides.append(f"{keys.name}.context_length=int:{context}")
    if overrides:
        flags.append(("override-kv", ",".join(overrides)))
    return flags


def launch_buckets(rope: RopePlan, keys: RopeKeys) -> tuple[LaunchBucket, ...]:
    """The buckets of a dynamic plan, from factor 1 on. keys: what llama.cpp's architecture reads.

    Raises Inexpressible where no flags say one of them exactly.
    """
    scaling, where = rope.main, f"method {method_name(rope.main)}"
    assert isinstance(scaling, DynamicYarn | DynamicNtk)
    if isinstance(scaling, DynamicYarn) and not scaling.truncate:
        what = "no flag of llama.cpp switches the truncation of the correction range off"
        raise Inexpressible(what, where=where, fix="Leave out --no-truncate, or write another target.")
    if keys.sliding is not None or keys.log_multiplier is not None:
        what = f"llama.cpp's {keys.name} architecture makes of flags something else than of a file's keys"
        raise Inexpressible(what, where=where, fix="Choose --method yarn, or write another target.")
    found = []
    for tables, static in zip(rope.main_group.buckets, static_scalings(scaling), strict=True):
        if tables.softmax_multiplier != 1.0:
            raise Inexpressible("no flag of llama.cpp sets a softmax scale", where="mscale_all_dim")
        context = reached_context(rope.original_context, tables.factor)
        flags: list[tuple[str, str]] = []
        if tables.factor > 1.0 and isinstance(scaling, DynamicYarn):
            flags = _yarn_flags(scaling, tables.factor, tables.attention_factor, context, keys)
        elif tables.factor > 1.0:
            flags = [
                ("rope-freq-base", f"{static.theta:.9g}"),
                ("override-kv", f"{keys.name}.context_length=int:{context}"),
            ]
        found.append(LaunchBucket(factor=tables.factor, context=context, flags=tuple(flags)))
    return tuple(found)
