"""What the user asks for: the rope options. Imports nothing heavy; the command line is made of it."""

from dataclasses import dataclass, fields
from typing import Any

METHODS = ("auto", "none", "linear", "ntk", "dynamic-ntk", "ntk-by-parts", "yarn", "dynamic-yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeRequest:
    """The rope options of the command line; None where the user said nothing."""

    method: str = "auto"
    factor: float | None = None
    target_context: int | None = None
    original_context: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    truncate: bool | None = None
    use_profile: bool = True

    @property
    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name: what makes the same request again."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    @property
    def asks_for_something(self) -> bool:
        """Whether any option is set that changes the scaling."""
        return bool(self.given.keys() - {"use_profile"})
