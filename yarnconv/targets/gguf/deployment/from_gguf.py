"""What the files beside a GGUF are made of, where it is an existing one extended: its metadata."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from yarnconv.checkpoint.tokenizer import SPECIAL_ROLES
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.resolve import request_of
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.check_workflow import UNKNOWN_REFERENCE
from yarnconv.targets.gguf.carried import CarriedRope, plan_carried
from yarnconv.targets.gguf.deployment.chat_source import ENDS, ChatSource, ending_tokens
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.deployment.server import presets_carry
from yarnconv.targets.gguf.extension import ExtensionJob
from yarnconv.targets.gguf.launch import launch_buckets
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope_keys import RopeKeys
from yarnconv.targets.gguf.vocabulary import TokenType, id_key
from yarnconv.targets.plan_card import command_line

MOST_TOKENS = 2**22  # the largest vocabularies have 2^18
LONGEST_NAME = 200  # characters
_END_ROLES = ("eos", "eot", "eom")
# llama.cpp's own where a file has none. What it takes for byte-level BPE are Falcon's, and no other model's.
_OWN_IDS = {"llama": {"bos": 1, "eos": 2}}
_ADDS_FIRST = {"llama": True, "bert": True, "gemma4": True, "t5": False, "rwkv": False, "plamo2": False}
_BYTE_LEVEL = frozenset({"gpt2", "hybriddna", "whitespace"})
# pre-tokenizers under which it adds the first token unless a file says otherwise, and says what it may
_PRE_ADDS_FIRST = frozenset(
    {
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        *("jina-v5-nano", "tekken", "chameleon"),
    }
)
_PRE_ALWAYS_ADDS_FIRST = frozenset({"gemma4", "granite-embed-multi-311m"})
# types of token whose text stands in the vocabulary as it is, not in an alphabet of bytes
_AS_THEY_ARE = frozenset({TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED})


def carried_extension(
    own: CarriedRope, served: RopePlan, request: RopeRequest, keys: RopeKeys, wanted: Collection[str]
) -> RopePlan:
    """The plan that the extended file itself is to carry: a plain one where presets beside it carry a dynamic
    one. own: what the existing file carries; served: what was asked for, by the request.

    Raises Inexpressible where they cannot.
    """
    if not presets_carry(served, wanted):
        return served
    launch_buckets(served, keys)
    return plan_carried(own, RopeRequest(method="none", use_profile=request.use_profile))


def _adds_first(artefact: GgufFile) -> bool | None:
    """Whether llama.cpp puts the first token before a text (`llama_vocab::impl::load`)."""
    model = artefact.scalar("tokenizer.ggml.model", str, "")
    pre = artefact.scalar("tokenizer.ggml.pre", str, "")
    stated: bool | None = artefact.scalar("tokenizer.ggml.add_bos_token", bool)
    if model == "gemma4" or (model in _BYTE_LEVEL and pre in _PRE_ALWAYS_ADDS_FIRST):
        return True
    if stated is not None:
        return stated
    return pre in _PRE_ADDS_FIRST if model in _BYTE_LEVEL else _ADDS_FIRST.get(model)


def _texts(artefact: GgufFile, tokens: Sequence[str]) -> dict[int, str]:
    """The texts of the vocabulary by their ids, of the tokens of which they are known."""
    types = artefact.array("tokenizer.ggml.token_type", int, MOST_TOKENS)
    types += [TokenType.NORMAL] * (len(tokens) - len(types))
    return {
        token: text
        for token, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in _AS_THEY_ARE or text in ENDS or (kind == TokenType.NORMAL and text.isascii())
    }


def _ids(artefact: GgufFile, count: int) -> dict[str, int]:
    """Ids by role. One beyond the vocabulary llama.cpp does not take; of an end it is kept, to be told of."""
    model = artefact.scalar("tokenizer.ggml.model", str, "")
    found: dict[str, int] = dict(_OWN_IDS.get(model, {}))
    for role in (*SPECIAL_ROLES, *_END_ROLES):
        token = artefact.scalar(id_key(role), int)
        if token is not None and (0 <= token < count or (role in _END_ROLES and role not in found)):
            found[role] = token
    return found


def _special_texts(ids: Mapping[str, int], texts: Mapping[int, str]) -> dict[str, str]:
    return {f"{role}_token": texts[ids[role]] for role in SPECIAL_ROLES if ids.get(role) in texts}


def chat_source(artefact: GgufFile) -> ChatSource:
    """Of the keys under `tokenizer.`. Raises BadInput for one of a wrong kind."""
    tokens = artefact.array("tokenizer.ggml.tokens", str, MOST_TOKENS)
    texts, ids = _texts(artefact, tokens), _ids(artefact, len(tokens))
    ends, unknown_ends = ending_tokens([ids[role] for role in _END_ROLES if role in ids], texts)
    return ChatSource(
        where=artefact.path.name,
        template=artefact.scalar("tokenizer.chat_template", str),
        special=_special_texts(ids, texts),
        adds_first=_adds_first(artefact),
        ends=ends,
        unknown_ends=unknown_ends,
    )


def deployment_of_extension(
    artefact: GgufFile,
    served: RopePlan,
    job: ExtensionJob,
    keys: RopeKeys,
    destination: Path,
    wanted: Collection[str],
) -> Deployment:
    """artefact: the existing file, open as long as this is used. served: the plan that was asked for."""
    name = artefact.scalar("general.name", str) or artefact.path.name.removesuffix(".gguf")
    return Deployment(
        served=served,
        check_options=command_line(request_of(job.plan.main).given),
        encoding=job.encoding,
        dtype=job.kind,
        name=name[:LONGEST_NAME],
        kind=keys.name,
        keys=keys,
        extended_from=artefact.path.name,
        destination=destination,
        parts=len(job.files),
        reference=UNKNOWN_REFERENCE,
        wanted=wanted,
        read_chat=lambda: chat_source(artefact),
    )
