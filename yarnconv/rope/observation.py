"""What of RoPE an artefact shows: numbers that were read, with how far each can be off."""

from dataclasses import dataclass

from yarnconv.rope.tables import Float64Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """inv_freq: float64[pairs], radians per position, pair 0 first. uncertainty: float64[pairs], by how much
    of itself each may be off, by the type and the number of positions that it was read from.
    attention_factor: on cos and sin. softmax_multiplier: on the softmax scale of the whole head; None where
    nothing shows it.
    """

    inv_freq: Float64Array
    uncertainty: Float64Array
    attention_factor: float = 1.0
    softmax_multiplier: float | None = None
