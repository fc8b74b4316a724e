"""What every check chooses alike, whatever the runtime: options, layers, tokens, vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan
from yarnconv.verify.components import require
from yarnconv.verify.computing import AS_EVER, Computing
from yarnconv.verify.passages import Tokens
from yarnconv.verify.weights import Coverage

FEWEST_LAYERS = 2  # one layer's attention would see bare embeddings only
MOST_VOCABULARY = 4096  # rows of the float32 copy's embedding and head
TOKEN_COUNT = 1024  # as many as the passages take, and some
TEXT_LENGTH = 2**16  # characters of a text that are tokenised, enough for as many tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """layers: how many to judge the structure with; None for the fewest that reach every kind, 0 for all.
    text, tokens: what is run instead of random tokens. diagnose: whether to say what explains the logits even
    where they are right. computing: of the reference.
    """

    layers: int | None = None
    coverage: Coverage = "sampled"
    text: str | None = None
    tokens: Sequence[int] | None = None
    seed: int = 0
    diagnose: bool = False
    computing: Computing = AS_EVER


def layer_kinds(plan: ConversionPlan) -> list[object]:
    """Of each layer what makes it unlike others: its description and its RoPE group."""
    group = {layer: index for index, one in enumerate(plan.rope.groups) for layer in one.layers}
    return [(layer, group[index]) for index, layer in enumerate(plan.description.layers)]


def judged_layers(plan: ConversionPlan, asked: int | None) -> int:
    """How many layers to judge: as asked, or the first ones in which every kind of layer occurs."""
    layers = plan.description.layers
    if asked == 0:
        return len(layers)
    kinds = layer_kinds(plan)
    reached = 1 + max(kinds.index(kind) for kind in kinds)
    if asked is not None:
        if not reached <= asked <= len(layers):
            what = f"{asked} is not between {reached}, which reaches every kind of layer, and {len(layers)}"
            raise BadInput(what, where="--layers")
        return asked
    return min(max(FEWEST_LAYERS, reached), len(layers))


def random_tokens(vocab_size: int, seed: int) -> Tokens:
    """int64 ids, every one as likely as the other."""
    return np.random.default_rng(seed).integers(0, vocab_size, TOKEN_COUNT)


def tokenize_beside(directory: Path, text: str) -> list[int]:
    """By the tokenizer that lies beside an artefact, without special tokens."""
    require("check", "tokenizers")
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BadInput(
            "there is none to tokenise the text with", where=str(path), fix="Give --tokens instead."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more specific
        raise BadInput(f"cannot be read ({str(error)[:200]})", where=path.name) from None
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def choose_tokens(options: CheckOptions, vocab_size: int, tokenize: Callable[[str], Sequence[int]]) -> Tokens:
    """int64 ids to run, at most TOKEN_COUNT: the user's, by the artefact's own vocabulary, or random ones."""
    if options.text is None and options.tokens is None:
        return random_tokens(vocab_size, options.seed)
    where = "--text" if options.tokens is None else "--tokens"
    given = tokenize((options.text or "")[:TEXT_LENGTH]) if options.tokens is None else options.tokens
    if not given:
        raise BadInput("there is not one token in it", where=where)
    if bad := [token for token in given if not 0 <= token < vocab_size]:
        raise BadInput(f"the token {bad[0]} is not below the vocabulary's {vocab_size}", where=where)
    return np.array(given[:TOKEN_COUNT], dtype=np.int64)


def kept_vocabulary(tokens: Tokens, vocab_size: int, seed: int) -> NDArray[np.intp]:
    """Ids that a small copy keeps, in order: those that are run, and others up to MOST_VOCABULARY."""
    used = np.unique(tokens)
    spare = max(min(vocab_size, MOST_VOCABULARY) - len(used), 0)
    others = np.setdiff1d(np.arange(vocab_size), used)
    chosen = np.random.default_rng(seed).choice(others, size=min(spare, len(others)), replace=False)
    return np.sort(np.concatenate([used, chosen])).astype(np.intp)
