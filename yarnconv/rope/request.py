"""What the user asks for: the rope options. Imports nothing heavy; the command line is made of it."""

from dataclasses import dataclass, fields

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
    def asks_for_something(self) -> bool:
        """Whether any option is set that changes the scaling."""
        return self.method != "auto" or any(
            getattr(self, field.name) is not None
            for field in fields(self)
            if field.name not in {"method", "use_profile"}
        )
