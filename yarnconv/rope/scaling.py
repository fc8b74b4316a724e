"""The closed union of RoPE scalings. Each class holds exactly the numbers its formula needs.

Lengths are in positions, betas in rotations within the original context, theta is the RoPE base.
The formulae live in `tables`; the spellings in a config.json in `spelling`.
"""

from dataclasses import dataclass

from yarnconv.errors import BadInput

MAXIMUM_FACTOR = 65536.0
MAXIMUM_CONTEXT = 2**31 - 1  # runtimes hold positions in a signed 32-bit integer
MAXIMUM_ROTARY_DIM = 65536


def _require(condition: bool, field: str, found: object, wanted: str) -> None:
    if not condition:
        raise BadInput(f"{field} is {found!r}, but must be {wanted}", where=field)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -1e300 < value < 1e300  # not a NaN, not infinite, and not an integer beyond any float


def _check_positive(field: str, value: float, smallest: float = 1e-6, largest: float = 1e15) -> None:
    # the bounds are far outside anything trained and well inside float32, in which runtimes compute
    _require(
        _is_number(value) and smallest <= value <= largest,
        field,
        value,
        f"a number above 0 (from {smallest:g} to {largest:g})",
    )


def _check_factor(field: str, factor: float) -> None:
    _require(_is_number(factor), field, factor, "a finite number")
    _require(
        1.0 <= factor <= MAXIMUM_FACTOR,
        field,
        factor,
        f"between 1 and {MAXIMUM_FACTOR:.0f} (below 1 the context would shrink)",
    )


def _check_context(field: str, positions: int) -> None:
    _require(
        isinstance(positions, int) and not isinstance(positions, bool) and 1 < positions <= MAXIMUM_CONTEXT,
        field,
        positions,
        f"a whole number of positions between 2 and {MAXIMUM_CONTEXT}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rope:
    """What every scaling has: the base and how many dimensions of a head rotate."""

    theta: float
    rotary_dim: int

    def __post_init__(self) -> None:
        _check_positive("rope_theta", self.theta, smallest=1.0)
        _require(
            isinstance(self.rotary_dim, int)
            and 0 < self.rotary_dim <= MAXIMUM_ROTARY_DIM
            and self.rotary_dim % 2 == 0,
            "rotary_dim",
            self.rotary_dim,
            f"an even whole number between 2 and {MAXIMUM_ROTARY_DIM}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscaled(_Rope):
    """Plain RoPE: pair i turns by theta^(-2i/rotary_dim) radians per position (Su et al., 2021)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extended(_Rope):
    """What every extension has: the context seen in pre-training and the ratio by which it grows."""

    original_context: int
    factor: float

    def __post_init__(self) -> None:
        _Rope.__post_init__(self)
        _check_context("original_max_position_embeddings", self.original_context)
        _check_factor("factor", self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(_Extended):
    """Position Interpolation: every frequency divided by the factor (Chen et al., 2023)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NtkAware(_Extended):
    """A larger base instead of smaller positions: theta * factor^(D/(D-2)) (bloc97, 2023)."""

    def __post_init__(self) -> None:
        _Extended.__post_init__(self)
        _require(self.rotary_dim > 2, "rotary_dim", self.rotary_dim, "above 2 for a change of base")


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNtk(NtkAware):
    """The base recomputed from the current length (transformers' rope type "dynamic").

    At length l it is theta * (factor * l/L - (factor - 1))^(D/(D-2)); up to L it is plain RoPE.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn(_Extended):
    """NTK-by-parts and the attention temperature (Peng et al., arXiv:2309.00071).

    beta_fast, beta_slow: pairs that turn more often than beta_fast within the original context are
        left alone, those that turn less often than beta_slow are divided by the factor.
    truncate: round the correction range outwards to whole dimensions, as the authors' code does.
    attention_factor: the constant on cos and sin; None means by formula from the fields below, and
        1.0 switches the temperature off, which leaves NTK-by-parts.
    temperature_coefficient: the 0.1 in 0.1 ln s + 1. Yarn-Mistral was trained with 0.07.
    mscale, mscale_all_dim: DeepSeek's pair; both non-zero: the attention factor is their quotient.
    softmax_mscale: multi-head latent attention also multiplies the softmax scale by
        m(mscale_all_dim)^2.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    temperature_coefficient: float = 0.1
    mscale: float | None = None
    mscale_all_dim: float | None = None
    softmax_mscale: bool = False

    def __post_init__(self) -> None:
        _Extended.__post_init__(self)
        _check_positive("beta_fast", self.beta_fast, largest=1e6)
        _check_positive("beta_slow", self.beta_slow, largest=1e6)
        _require(
            self.beta_fast >= self.beta_slow,  # Kimi K2's are both 1
            "beta_fast",
            self.beta_fast,
            f"at least beta_slow ({self.beta_slow:g})",
        )
        _require(self.theta > 1.0, "rope_theta", self.theta, "above 1 for YaRN")
        _require(isinstance(self.truncate, bool), "truncate", self.truncate, "true or false")
        if self.attention_factor is not None:
            _check_positive("attention_factor", self.attention_factor, smallest=1e-3, largest=1e3)
        for field, value in (("mscale", self.mscale), ("mscale_all_dim", self.mscale_all_dim)):
            if value is not None:
                _require(_is_number(value) and 0 <= value <= 1e3, field, value, "a number from 0 to 1000")
        _require(
            _is_number(self.temperature_coefficient) and self.temperature_coefficient >= 0,
            "temperature_coefficient",
            self.temperature_coefficient,
            "a finite number of 0 or more",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicYarn(Yarn):
    """YaRN whose factor is fixed per request from its declared length, in buckets 1, 2, 4, ...

    The bucket 1 is plain RoPE, so that a short request keeps the model's original quality (paper
    section 3.3; buckets because a factor that changes under cached keys is wrong).
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3(_Extended):
    """Llama 3.1's own rule: wavelengths above L/low_freq_factor are stretched by the factor, those
    below L/high_freq_factor left alone, the ones between interpolated.
    """

    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self) -> None:
        _Extended.__post_init__(self)
        _check_positive("low_freq_factor", self.low_freq_factor)
        _check_positive("high_freq_factor", self.high_freq_factor)
        _require(
            self.high_freq_factor > self.low_freq_factor,
            "high_freq_factor",
            self.high_freq_factor,
            f"above low_freq_factor ({self.low_freq_factor:g})",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRope(_Extended):
    """One divisor per pair, a short and a long set (Phi-3; arXiv:2402.13753).

    attention_factor: None means sqrt(1 + ln s / ln L).
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _Extended.__post_init__(self)
        for field, factors in (
            ("short_factor", self.short_factor),
            ("long_factor", self.long_factor),
        ):
            _require(
                len(factors) == self.rotary_dim // 2 and all(1e-6 <= f <= 1e6 for f in factors),
                field,
                f"{len(factors)} entries",
                f"{self.rotary_dim // 2} positive numbers, one per pair of dimensions",
            )
        if self.attention_factor is not None:
            _check_positive("attention_factor", self.attention_factor, smallest=1e-3, largest=1e3)


Scaling = Unscaled | Linear | NtkAware | DynamicNtk | Yarn | DynamicYarn | Llama3 | LongRope
Extended = Linear | NtkAware | DynamicNtk | Yarn | DynamicYarn | Llama3 | LongRope
# those whose factor is a ratio of contexts; Llama3's and LongRope's are numbers of their formulae
Stretched = Linear | NtkAware | DynamicNtk | Yarn | DynamicYarn


def method_name(scaling: Scaling) -> str:
    """The scaling's name on the command line and in JSON."""
    if isinstance(scaling, Yarn) and not isinstance(scaling, DynamicYarn):
        return "ntk-by-parts" if scaling.attention_factor == 1.0 and scaling.factor > 1 else "yarn"
    return {
        Unscaled: "none",
        Linear: "linear",
        NtkAware: "ntk",
        DynamicNtk: "dynamic-ntk",
        DynamicYarn: "dynamic-yarn",
        Llama3: "llama3",
        LongRope: "longrope",
    }[type(scaling)]


def is_dynamic(scaling: Scaling) -> bool:
    """Whether the frequencies depend on the length of the request."""
    return isinstance(scaling, DynamicNtk | DynamicYarn | LongRope)
