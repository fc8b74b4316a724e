"""What becomes of the user's request on a given checkpoint.

The checkpoint's own scaling is kept unless the user overrides it, and an override says what changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from yarnconv.errors import BadInput
from yarnconv.rope.profiles import Profile
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import (
    MAXIMUM_CONTEXT,
    DynamicNtk,
    DynamicYarn,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    Scaling,
    Stretched,
    Unscaled,
    Yarn,
    is_dynamic,
    method_name,
)
from yarnconv.rope.spelling import ConfigRope
from yarnconv.rope.tables import extended_context

_YARN_METHODS = frozenset({"ntk-by-parts", "yarn", "dynamic-yarn"})
# Layers that see the whole context are the ones an extension is for; windowed ones never meet a
# position difference above their window.
EXTENDED_LAYER_TYPE = "full_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRope:
    """The scalings to embed, by layer type, and what the user should know of them.

    main: the scaling of the layers that are extended.
    finetuned: True only where the checkpoint itself carried `main` unchanged.
    """

    groups: Mapping[str | None, Scaling | None]
    main: Scaling
    original_context: int
    target_context: int
    finetuned: bool
    profile: Profile | None
    warnings: tuple[str, ...]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_strays(request: RopeRequest, method: str) -> None:
    """Options that the method does not have are an error: nothing asked for is dropped."""
    strays = {
        "none": ("factor", "target_context", "original_context"),
        "ntk-by-parts": ("attention_factor",),
    }.get(method, ())
    if method not in _YARN_METHODS:
        strays = (*strays, "beta_fast", "beta_slow", "truncate", "attention_factor")
    for name in strays:
        if getattr(request, name) is not None:
            raise BadInput(
                f"{_option(name)} has no meaning for method {method}",
                where=_option(name),
                fix="Leave it out, or choose --method yarn.",
            )


def _factor(request: RopeRequest, own: Scaling, original: int, method: str) -> float:
    for name, value in (("factor", request.factor), ("target_context", request.target_context)):
        if value is not None and not 0 < value < 1e300:
            raise BadInput(f"{_option(name)} is {value}, not a positive number", where=_option(name))
    if request.target_context is not None and request.target_context < original:
        raise BadInput(
            f"the target context {request.target_context} lies below the original context {original}",
            where="--target-context",
            fix="Give a longer one, or correct --original-context.",
        )
    if request.factor is not None:
        reached = original * request.factor
        if request.target_context is not None and abs(reached - request.target_context) >= 1.0:
            raise BadInput(
                f"--factor {request.factor:g} on an original context of {original} gives {reached:.0f}, "
                f"not --target-context {request.target_context}",
                where="--factor, --target-context",
                fix="Give one of the two, or correct --original-context.",
            )
        return request.factor
    if request.target_context is not None:
        return request.target_context / original
    if isinstance(own, Stretched):
        return own.factor
    raise BadInput(
        f"method {method} needs to know how far to extend",
        where="--method",
        fix="Give --factor or --target-context.",
    )


def _yarn(request: RopeRequest, own: Scaling, method: str, original: int, factor: float) -> Yarn:
    kind = DynamicYarn if method == "dynamic-yarn" else Yarn
    kept = {}
    if isinstance(own, Yarn):
        kept = {field.name: getattr(own, field.name) for field in fields(Yarn)}
        if factor != own.factor or method != method_name(own):
            kept["attention_factor"] = None  # it belonged to the old factor
    scaling = kind(
        **{
            **kept,
            "theta": own.theta,
            "rotary_dim": own.rotary_dim,
            "original_context": original,
            "factor": factor,
        }
    )
    attention_factor = 1.0 if method == "ntk-by-parts" else request.attention_factor
    overrides: dict[str, Any] = {
        name: value
        for name, value in (
            ("beta_fast", request.beta_fast),
            ("beta_slow", request.beta_slow),
            ("truncate", request.truncate),
            ("attention_factor", attention_factor),
        )
        if value is not None
    }
    try:
        return replace(scaling, **overrides)
    except BadInput as error:
        raise BadInput(error.what, where=_option(str(error.where)), fix=error.fix) from None


def _apply(request: RopeRequest, own: Scaling, fallback_original: int) -> Scaling:
    """The scaling that the request makes of the checkpoint's own."""
    method = request.method
    if method == "auto":
        extends = request.factor is not None or request.target_context is not None
        method = "yarn" if extends else method_name(own)
        if method == "none":
            raise BadInput(
                "the checkpoint carries no scaling that this option could change",
                where="rope options",
                fix="Give --factor or --target-context as well.",
            )
    _refuse_strays(request, method)
    if method == "none":
        return Unscaled(theta=own.theta, rotary_dim=own.rotary_dim)
    original = request.original_context or (
        fallback_original if isinstance(own, Unscaled) else own.original_context
    )
    if request.original_context is not None and request.original_context <= 0:
        raise BadInput("the original context must be above 0", where="--original-context")
    if isinstance(own, Llama3 | LongRope) and method == method_name(own):
        return replace(own, original_context=original)
    factor = _factor(request, own, original, method)
    try:
        if method in _YARN_METHODS:
            return _yarn(request, own, method, original, factor)
        kinds: dict[str, type[Linear | NtkAware | DynamicNtk]] = {
            "linear": Linear,
            "ntk": NtkAware,
            "dynamic-ntk": DynamicNtk,
        }
        return kinds[method](
            theta=own.theta, rotary_dim=own.rotary_dim, original_context=original, factor=factor
        )
    except BadInput as error:
        if error.where == "factor":
            raise BadInput(error.what, where="--factor", fix=error.fix) from None
        raise


def _difference(own: Scaling, new: Scaling) -> str:
    """What an override changed, field by field."""
    changed = []
    if method_name(own) != method_name(new):
        changed.append(f"method {method_name(own)} -> {method_name(new)}")
    for field in fields(new):
        if not hasattr(own, field.name):
            continue
        before, after = getattr(own, field.name), getattr(new, field.name)
        if before != after:
            changed.append(
                f"{field.name} {'by formula' if before is None else before} -> "
                f"{'by formula' if after is None else after}"
            )
    return ", ".join(changed)


def _shrinks(own: Scaling, new: Scaling) -> list[str]:
    """A factor of a checkpoint's is one in all, and not on top of its own."""
    if not isinstance(own, Stretched) or isinstance(new, Unscaled):
        return []
    before, after = extended_context(own), extended_context(new)
    if after >= before:
        return []
    return [
        f"The context shrinks from {before} to {after} positions: factors count from the original context. "
        f"For {new.factor:g} on top give --factor {own.factor * new.factor:g}."
    ]


def _warnings(own: Scaling, new: Scaling, finetuned: bool) -> list[str]:
    warnings = []
    if not isinstance(own, Unscaled) and new != own:
        warnings.append(f"The model's own scaling is replaced: {_difference(own, new)}.")
        warnings += _shrinks(own, new)
        if isinstance(own, Llama3 | LongRope):
            warnings.append(
                f"Its weights were trained with {method_name(own)} frequencies, which "
                f"{method_name(new)} does not keep: expect damage unless it is fine-tuned again."
            )
    if not isinstance(new, Unscaled) and new.factor > 1.0 and not finetuned:
        warnings.append(
            "Not fine-tuned: without at least a short fine-tune on long sequences quality beyond the "
            "original context is clearly worse, most of all on needle-in-a-haystack tasks."
        )
        if not is_dynamic(new):
            warnings.append("Static scaling: it applies to short prompts too and costs them some quality.")
    return warnings


def on_top_of(own: Scaling, request: RopeRequest) -> tuple[RopeRequest, tuple[str, ...]]:
    """The request that extends an artefact by what is asked on top of what it carries, and what to say of it.

    An artefact's factor is a fact of the file and not a wish that a new one replaces: extending twice is
    extending once by the product, from the original context. With an original context given, the factor
    counts from that one.
    """
    if not isinstance(own, Stretched) or own.factor == 1.0:
        return request, ()
    if request.factor is None or request.original_context is not None:
        return request, ()
    factor = own.factor * request.factor
    note = (
        f"The artefact is extended by {own.factor:g} already: with --factor {request.factor:g} on top it is "
        f"{factor:g} from its original context of {own.original_context}. For {request.factor:g} in all give "
        f"--original-context {own.original_context} as well."
    )
    return replace(request, factor=factor, original_context=own.original_context), (note,)


def request_of(scaling: Scaling) -> RopeRequest:
    """The rope options that make a scaling of the model that it was made of, whatever that one carries."""
    if isinstance(scaling, Unscaled):
        return RopeRequest(method="none")
    method = method_name(scaling)
    if isinstance(scaling, Llama3 | LongRope):
        return RopeRequest()  # a checkpoint's own, which no option makes
    request = RopeRequest(method=method, factor=scaling.factor, original_context=scaling.original_context)
    if not isinstance(scaling, Yarn):
        return request
    return replace(
        request,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        truncate=scaling.truncate,
        attention_factor=None if method == "ntk-by-parts" else scaling.attention_factor,
    )


def resolve(rope: ConfigRope, request: RopeRequest, profile: Profile | None, maximum: int) -> ResolvedRope:
    """Join what the checkpoint carries with what the user asks for.

    maximum: the config's max_position_embeddings, the context of a model that is not extended.
    """
    groups = dict(rope.groups)
    scaled_type = None if None in groups else EXTENDED_LAYER_TYPE
    config_own = groups.get(scaled_type)
    if config_own is None:
        raise BadInput(
            "no layers that see the whole context have RoPE parameters",
            where="config.json: rope_parameters",
        )
    own = profile.scaling if profile and profile.scaling else config_own
    fallback = (profile.original_context if profile else None) or maximum
    main = _apply(request, own, fallback) if request.asks_for_something else own
    groups[scaled_type] = main
    finetuned = main == own and not isinstance(own, Unscaled) and rope.finetuned is not False
    if isinstance(main, Unscaled):
        original, target = fallback, maximum
    elif isinstance(main, Llama3 | LongRope):
        original, target = main.original_context, maximum  # their factor is not a ratio of contexts
    else:
        original, target = main.original_context, extended_context(main)
    if target > MAXIMUM_CONTEXT:
        raise BadInput(
            f"a context of {original} x {main.factor if not isinstance(main, Unscaled) else 1:g} is "
            f"{target} positions; runtimes count to {MAXIMUM_CONTEXT}",
            where="target context",
        )
    stated = request.original_context is not None
    known = profile is not None and profile.scaling is not None
    notes = () if stated else tuple(n for n in rope.notes if not (known and n in rope.original_notes))
    return ResolvedRope(
        groups=groups,
        main=main,
        original_context=original,
        target_context=target,
        finetuned=finetuned,
        profile=profile,
        warnings=(*notes, *_warnings(own, main, finetuned)),
    )
