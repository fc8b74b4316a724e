"""From a scaling back to a config.json, in transformers 5's spelling."""

from typing import Any

from yarnconv.rope.scaling import (
    DynamicNtk,
    DynamicYarn,
    Llama3,
    LongRope,
    NtkAware,
    Scaling,
    Unscaled,
    Yarn,
)
from yarnconv.rope.tables import ntk_base, yarn_attention_factor


def as_transformers(scaling: Scaling) -> Scaling:
    """What transformers computes to the same end: it has no NTK-aware type, which is plain RoPE at an
    enlarged base. Any other scaling as it is.
    """
    if isinstance(scaling, NtkAware) and not isinstance(scaling, DynamicNtk):
        return Unscaled(theta=ntk_base(scaling), rotary_dim=scaling.rotary_dim)
    return scaling


def write_rope(scaling: Scaling) -> dict[str, Any]:
    """The transformers 5 spelling of one scaling: the object under `rope_parameters`.

    Types that transformers does not know (ntk, dynamic-yarn) are spelled with this tool's names, so
    that reading the result gives the same scaling back.
    """
    spelled: dict[str, Any] = {"rope_type": "default", "rope_theta": scaling.theta}
    if isinstance(scaling, Unscaled):
        return spelled
    spelled["factor"] = scaling.factor
    spelled["original_max_position_embeddings"] = scaling.original_context
    if isinstance(scaling, Yarn):
        spelled["rope_type"] = "dynamic-yarn" if isinstance(scaling, DynamicYarn) else "yarn"
        spelled["beta_fast"] = scaling.beta_fast
        spelled["beta_slow"] = scaling.beta_slow
        spelled["truncate"] = scaling.truncate
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(scaling, key) is not None:
                spelled[key] = getattr(scaling, key)
        if scaling.temperature_coefficient != 0.1:  # no config key says it: spell the result
            spelled["attention_factor"] = yarn_attention_factor(scaling)
    elif isinstance(scaling, Llama3):
        spelled["rope_type"] = "llama3"
        spelled["low_freq_factor"] = scaling.low_freq_factor
        spelled["high_freq_factor"] = scaling.high_freq_factor
    elif isinstance(scaling, LongRope):
        spelled["rope_type"] = "longrope"
        spelled["short_factor"] = list(scaling.short_factor)
        spelled["long_factor"] = list(scaling.long_factor)
        if scaling.attention_factor is not None:
            spelled["attention_factor"] = scaling.attention_factor
    elif isinstance(scaling, DynamicNtk):
        spelled["rope_type"] = "dynamic"
    else:
        spelled["rope_type"] = "ntk" if isinstance(scaling, NtkAware) else "linear"
    return spelled
