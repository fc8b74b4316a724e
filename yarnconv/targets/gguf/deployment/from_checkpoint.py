"""What the files beside a GGUF are made of, where it is converted from a checkpoint."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.hub import GENERATION_FILE, model_name
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.checkpoint.tokenizer import (
    SPECIAL_ROLES,
    SpecialTokens,
    TokenizerFiles,
    added_tokens,
    read_tokenizer,
    special_tokens,
    token_text,
)
from yarnconv.plan import ConversionPlan, plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.check_workflow import Reference
from yarnconv.targets.gguf.deployment.chat_source import ChatSource, ending_tokens
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.deployment.server import presets_carry
from yarnconv.targets.gguf.launch import launch_buckets
from yarnconv.targets.gguf.layered_rope import keys_of_plan
from yarnconv.targets.gguf.refusals import runtime_of, structure_refusals
from yarnconv.targets.gguf.target import GgufJob
from yarnconv.targets.plan_card import command_line


def carried_plan(served: ConversionPlan, wanted: Collection[str]) -> ConversionPlan:
    """The plan that the GGUF itself is to carry: a plain one where presets beside it carry a dynamic one.

    Raises Inexpressible where they cannot.
    """
    if not presets_carry(served.rope, wanted):
        return served
    runtime = runtime_of(served)
    if found := structure_refusals(served, runtime):
        raise found[0]
    launch_buckets(served.rope, keys_of_plan(served, runtime))
    plain = RopeRequest(method="none", use_profile=served.request.use_profile)
    return plan_conversion(served.checkpoint, plain)


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _special_texts(files: TokenizerFiles) -> dict[str, str]:
    """The special tokens' texts by the names that chat templates have for them."""
    older = files.directory / "special_tokens_map.json"
    named = {**(read_json_object(older) if older.exists() else {}), **files.config}
    found = {f"{role}_token": token_text(named, role) for role in SPECIAL_ROLES}
    return {name: text for name, text in found.items() if text is not None}


def _ends(
    files: TokenizerFiles, special: SpecialTokens, config: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts of all tokens that end an answer, and the ids of those whose text is not known here."""
    ids = _ids(config.get("eos_token_id"))
    generation = files.directory / GENERATION_FILE
    if generation.exists():
        ids += _ids(read_json_object(generation).get("eos_token_id"))
    ids += [special.ids[role] for role in ("eos", "eot") if role in special.ids]
    ends, unknown = ending_tokens(ids, {token.id: token.content for token in added_tokens(files)})
    if not (named := token_text(files.config, "eos")):
        return ends, unknown
    return ends if named in ends else (*ends, named), ()


def chat_source(plan: ConversionPlan) -> ChatSource:
    """Of the tokenizer's files, config.json and generation_config.json."""
    files = read_tokenizer(plan.checkpoint.directory)
    special = special_tokens(files, plan.config, int(plan.config["vocab_size"]))
    ends, unknown_ends = _ends(files, special, plan.config)
    return ChatSource(
        where=str(files.directory),
        template=files.chat_templates.get("default"),
        special=_special_texts(files),
        adds_first=special.adds.get("bos"),
        ends=ends,
        unknown_ends=unknown_ends,
    )


def deployment_of_conversion(
    served: ConversionPlan,
    carried: ConversionPlan,
    job: GgufJob,
    destination: Path,
    reference: Reference,
    wanted: Collection[str],
    *,
    kind: str,
) -> Deployment:
    """served: the plan that was asked for; carried: the file's own. kind: the type of its weights."""
    return Deployment(
        served=served.rope,
        check_options=command_line(carried.request.given),
        encoding=job.rope,
        dtype=kind,
        name=model_name(served.checkpoint.directory),
        kind=served.description.family,
        keys=keys_of_plan(served, runtime_of(served)),
        extended_from=None,
        destination=destination,
        parts=len(job.files),
        reference=reference,
        wanted=wanted,
        read_chat=lambda: chat_source(served),
    )
