"""What an extended checkpoint's files say of its RoPE, beside what the plan makes of them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from math import isclose
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.model.describe import with_defaults
from yarnconv.plan import ConversionPlan
from yarnconv.rope.resolve import EXTENDED_LAYER_TYPE
from yarnconv.rope.scaling import Scaling, method_name
from yarnconv.rope.spelling import read_rope
from yarnconv.rope.tables import buckets
from yarnconv.rope.writing import as_transformers
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.hf.config import (
    LENGTH_SYNONYMS,
    older_spelling_says,
    position_limit,
    scaling_by_type,
)
from yarnconv.targets.hf.files import TOKENIZER_CONFIG

SAME_NUMBER = 1e-6  # relative, what float32 tells apart
# Fields of a scaling that the temperature is made of: it is compared as what comes out of them.
_OF_THE_TEMPERATURE = frozenset(
    {"attention_factor", "mscale", "mscale_all_dim", "temperature_coefficient", "softmax_mscale"}
)
# By what name a config.json has the fields that are called otherwise here.
_KEYS = {"theta": "rope_theta", "original_context": "original_max_position_embeddings"}


def _rope_facts(scaling: Scaling) -> dict[str, Any]:
    facts: dict[str, Any] = {"rope_type": method_name(scaling)}
    for field in fields(scaling):
        if field.name not in _OF_THE_TEMPERATURE:
            facts[_KEYS.get(field.name, field.name)] = getattr(scaling, field.name)
    facts["attention_factor"] = buckets(scaling)[-1].attention_factor
    return facts


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return len(expected) == len(found) and all(map(_same, expected, found))
    numbers = isinstance(expected, int | float) and isinstance(found, int | float)
    if not numbers or isinstance(expected, bool):
        return bool(expected == found)
    try:
        return isclose(expected, found, rel_tol=SAME_NUMBER)
    except OverflowError:  # a whole number beyond any float
        return False


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = f"{value:.9g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fact(key: str, expected: Any, found: Any, *, decisive: bool = True) -> FactComparison:
    return FactComparison(
        key=key,
        expected=_shown(expected),
        found=_shown(found),
        agrees=_same(expected, found),
        decisive=decisive,
    )


def _compared(expected: Scaling, found: Scaling | None, where: str) -> Iterator[FactComparison]:
    facts = {} if found is None else _rope_facts(found)
    for key, value in _rope_facts(expected).items():
        yield _fact(f"{where}.{key}", value, facts.get(key))


def _for_all(expected: Scaling, config: Mapping[str, Any], spelling: str) -> Iterator[FactComparison]:
    groups = read_rope(config).groups
    if groups.get(None) is None:
        yield _fact(spelling, "one for all layers", f"one for each of {len(groups)} types of layers")
    else:
        yield from _compared(expected, groups[None], spelling)


def _growth(plan: ConversionPlan, config: Mapping[str, Any], spelling: str) -> Iterator[FactComparison]:
    """Of queries with their position. config: as `with_defaults` fills it in."""
    key = plan.family.structure.query_growth
    if key is None:
        return
    expected, found = plan.description.layers[0].attention.query_growth, config.get(key) or {}
    yield _fact(f"{spelling}.{key}", expected.beta if expected else 0.0, found.get("beta", 0.0))
    if expected is not None:
        place = f"{spelling}.{_KEYS['original_context']} of {key}"
        yield _fact(place, expected.context, found.get("context"))


def _without(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _older_by_type(plan: ConversionPlan, config: Mapping[str, Any]) -> Iterator[FactComparison]:
    """As transformers 4 reads it: a scaling of the layers that see everything, and bases."""
    if not older_spelling_says(plan):
        yield _fact("rope_scaling", None, config.get("rope_scaling"))
        return
    thetas = plan.family.structure.theta_by_layer_type or {}
    bases = {theta.key: theta.default for theta in thetas.values() if theta.key is not None}
    own = {**bases, **_without(config, "rope_parameters")}
    filled = {**with_defaults(plan.family, own), "rope_scaling": config.get("rope_scaling")}
    by_type = scaling_by_type(plan)
    yield from _for_all(
        by_type.pop(EXTENDED_LAYER_TYPE), _without(filled, "rope_parameters", "layer_types"), "rope_scaling"
    )
    for kind, scaling in by_type.items():
        if (key := thetas[kind].key) is not None:
            yield _fact(key, scaling.theta, own[key])


def _by_type(plan: ConversionPlan, config: Mapping[str, Any]) -> Iterator[FactComparison]:
    yield from _older_by_type(plan, config)
    if not config.get("rope_parameters"):  # transformers 5 makes them of the other spelling
        yield _fact("rope_parameters", "by layer type", None, decisive=not older_spelling_says(plan))
        return
    groups = read_rope(with_defaults(plan.family, _without(config, "rope_scaling"))).groups
    for kind, scaling in scaling_by_type(plan).items():
        yield from _compared(scaling, groups.get(kind), f"rope_parameters.{kind}")


def _rope(plan: ConversionPlan, config: Mapping[str, Any]) -> Iterator[FactComparison]:
    """Both spellings, each read as if the other were not there. config: as it stands in the file."""
    if plan.family.structure.theta_by_layer_type is not None:
        yield from _by_type(plan, config)
        return
    expected = as_transformers(plan.rope.main)
    older = with_defaults(plan.family, _without(config, "rope_parameters"))
    yield from _for_all(expected, older, "rope_scaling")
    yield from _growth(plan, older, "rope_scaling")
    if config.get("rope_parameters"):
        newer = with_defaults(plan.family, _without(config, "rope_scaling"))
        yield from _for_all(expected, newer, "rope_parameters")
        yield from _growth(plan, newer, "rope_parameters")
    else:  # transformers 5 reads the other one
        yield _fact("rope_parameters", "as rope_scaling", None, decisive=False)


def _lengths(plan: ConversionPlan, config: Mapping[str, Any], directory: Path) -> Iterator[FactComparison]:
    names = ("max_position_embeddings", *(name for name in LENGTH_SYNONYMS if name in config))
    for name in names:
        yield _fact(name, position_limit(plan.rope), config.get(name))
    if (directory / TOKENIZER_CONFIG).exists():
        document = read_json_object(directory / TOKENIZER_CONFIG)
        length = document.get("model_max_length")
        yield _fact(f"{TOKENIZER_CONFIG}: model_max_length", plan.rope.target_context, length)


def _model(plan: ConversionPlan, config: Mapping[str, Any], keys: frozenset[str]) -> Iterator[FactComparison]:
    """Everything else that the model is computed with must be the reference's."""
    for key in sorted(keys - {"head_dim"}):
        if (found := config.get(key)) != (expected := plan.config.get(key)):
            yield _fact(key, expected, found)


def _beside(directory: Path) -> Iterator[FactComparison]:
    """Files that transformers would load instead of, or on top of, the weights that are judged."""
    if (directory / "adapter_config.json").exists():
        yield _fact("adapter_config.json", None, "present")
    if (directory / INDEX_FILE).exists() and (directory / SINGLE_FILE).exists():
        yield _fact(f"{SINGLE_FILE} beside {INDEX_FILE}", None, "present")


def compare_metadata(
    plan: ConversionPlan, artefact: Checkpoint, keys: frozenset[str]
) -> tuple[FactComparison, ...]:
    """Every fact of an extended checkpoint against the plan. keys: of config.json that the model is computed
    with. Raises BadInput where a spelling cannot be read.
    """
    config = with_defaults(plan.family, artefact.config)
    return (
        *_rope(plan, artefact.config),
        *_lengths(plan, config, artefact.directory),
        *_model(plan, config, keys),
        *_beside(artefact.directory),
    )
