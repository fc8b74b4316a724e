"""What llama.cpp computes, by its own architecture names (checked against the source of October 2026); what
it reads of RoPE stands in `rope_keys`.
"""

from dataclasses import dataclass
from typing import Literal

from yarnconv.plan import ConversionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeArchitecture:
    """One architecture of llama.cpp's `src/models/`.

    pairing: of the dimensions that it rotates, as in `AttentionDescription`.
    sliding_window: honours `attention.sliding_window`.
    output_bias, mlp_bias: loads the biases of the attention output and of the MLP.
    head_size_free: the query heads may span more or less than the hidden size.
    activation: the one MLP activation its graph is built with.
    """

    name: str
    pairing: Literal["half", "interleaved"]
    sliding_window: bool
    output_bias: bool
    mlp_bias: bool
    head_size_free: bool
    activation: str = "silu"


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        RuntimeArchitecture(
            name="llama",
            pairing="interleaved",
            sliding_window=False,
            output_bias=True,
            mlp_bias=True,
            head_size_free=True,
        ),
        RuntimeArchitecture(
            name="qwen2",
            pairing="half",
            sliding_window=False,
            output_bias=False,
            mlp_bias=False,
            head_size_free=False,
        ),
        RuntimeArchitecture(
            name="qwen3",
            pairing="half",
            sliding_window=False,
            output_bias=False,
            mlp_bias=False,
            head_size_free=True,
        ),
    )
}


def runtime_of(plan: ConversionPlan) -> RuntimeArchitecture:
    """The architecture that is to compute a plan."""
    return ARCHITECTURES[plan.family.gguf.architectures[0]]
