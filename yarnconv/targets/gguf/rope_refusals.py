"""Why llama.cpp cannot be told a plan's RoPE, and what to do instead."""

from yarnconv.errors import Inexpressible
from yarnconv.rope.scaling import LongRope, Scaling, Yarn, method_name
from yarnconv.rope.tables import Float64Array
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.gguf.launch import launch_buckets
from yarnconv.targets.gguf.rope_keys import RopeKeys


def refuse_dynamic(plan: RopePlan, keys: RopeKeys) -> Inexpressible:
    """One set of frequencies where several are wanted."""
    scaling = plan.main
    if isinstance(scaling, LongRope):
        return Inexpressible(
            f"llama.cpp's {keys.name} architecture does not load longrope's two sets of frequencies",
            where="method longrope",
            fix="Give another --method, such as yarn with --factor.",
        )
    buckets = launch_buckets(plan, keys)
    lines = [f"  {bucket.command_line}" for bucket in buckets if bucket.factor > 1.0]
    return Inexpressible(
        "a GGUF holds one set of frequencies and llama.cpp does not change it with the length",
        where=f"method {method_name(scaling)}",
        fix=(
            "Add --emit llama-server: a plain file, and a preset of llama-server for each factor. Or write a "
            "plain file (--method none) and start llama.cpp with the flags for the longest request it will "
            "serve; up to the original context, with none:\n" + "\n".join(lines)
        ),
    )


def refuse_tempered(keys: RopeKeys) -> Inexpressible:
    """A temperature that would act on layers with a sliding window too."""
    return Inexpressible(
        f"llama.cpp's {keys.name} architecture would put the difference to its own temperature on the layers "
        "with a sliding window too",
        where="attention factor",
        fix="Choose --method yarn without --attention-factor, linear or ntk.",
    )


def refuse_enlarged(keys: RopeKeys) -> Inexpressible:
    """A base that would be that of layers with a sliding window too."""
    return Inexpressible(
        f"llama.cpp's {keys.name} architecture has one base for all layers, and would enlarge that of the "
        "layers with a sliding window too",
        where="method ntk",
        fix="Choose --method yarn or linear.",
    )


def refuse_frequencies(
    scaling: Scaling, worst: Float64Array, keys: RopeKeys, tolerance: float
) -> Inexpressible:
    """Frequencies that no key and no tensor says. worst: relative error of each, in the plainest spelling."""
    if not isinstance(scaling, Yarn):
        return Inexpressible(
            f"llama.cpp's {keys.name} architecture has no keys for {method_name(scaling)} and loads "
            "no rope_freqs tensor",
            where=f"method {method_name(scaling)}",
            fix="Choose --method yarn, linear or ntk, or write another target.",
        )
    wrong = int((worst > tolerance).sum())
    betas = "" if keys.betas else "beta_fast 32, beta_slow 1 and "
    return Inexpressible(
        f"llama.cpp's {keys.name} architecture always uses {betas}a "
        f"truncated correction range, and loads no rope_freqs tensor: {wrong} of {len(worst)} "
        f"frequencies would be wrong, by up to {100 * worst.max():.1f} %",
        where=f"method {method_name(scaling)}",
        fix="Leave out --beta-fast, --beta-slow and --no-truncate, choose --method linear or ntk, or "
        "write another target."
        + ("" if scaling.truncate else " Or accept what it rounds to, with --allow-runtime-truncation."),
    )
