"""What one check of a GGUF works on: the plan, the artefact, and what is run through it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress
from yarnconv.targets.gguf.placement import TensorPlacement
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.verify.passages import Tokens
from yarnconv.verify.runners.llama_cpp import LlamaCpp
from yarnconv.verify.weights import Coverage

FEWEST_LAYERS = 2  # one layer's attention would see bare embeddings only
MOST_VOCABULARY = 4096  # rows of the float32 copy's embedding and head
TOKEN_COUNT = 1024  # as many as the passages take, and some
TEXT_LENGTH = 2**16  # characters of a text that are tokenised, enough for as many tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """layers: how many to judge the structure with; None for the fewest that reach every kind, 0 for all.
    text, tokens: what is run instead of random tokens.
    """

    layers: int | None = None
    coverage: Coverage = "sampled"
    text: str | None = None
    tokens: Sequence[int] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """plan: the expected one. places: where its tensors should stand. tokens: int64 ids to run.
    layers: how many the structure is judged with.
    """

    plan: ConversionPlan
    artefact: GgufFile
    places: tuple[TensorPlacement, ...]
    tokens: Tokens
    layers: int
    options: CheckOptions
    runner: LlamaCpp
    progress: Progress

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The artefact's and the checkpoint's."""
        sources = {id(place.binding.source.file): place.binding.source.file for place in self.places}
        return (*self.artefact.files, *sources.values())

    @property
    def all_layers(self) -> int:
        """Layers of the whole model."""
        return len(self.plan.description.layers)

    def kept_vocabulary(self) -> NDArray[np.intp]:
        """Ids that a small copy keeps: those that are run, and others up to MOST_VOCABULARY."""
        vocab_size = self.plan.description.vocab_size
        used = np.unique(self.tokens)
        spare = max(min(vocab_size, MOST_VOCABULARY) - len(used), 0)
        others = np.setdiff1d(np.arange(vocab_size), used)
        generator = np.random.default_rng(self.options.seed)
        chosen = generator.choice(others, size=min(spare, len(others)), replace=False)
        return np.sort(np.concatenate([used, chosen])).astype(np.intp)


def judged_layers(plan: ConversionPlan, asked: int | None) -> int:
    """How many layers to judge: as asked, or the first ones in which every kind of layer occurs."""
    layers = plan.description.layers
    if asked == 0:
        return len(layers)
    if asked is not None:
        if not 1 <= asked <= len(layers):
            raise BadInput(f"{asked} is not between 1 and the model's {len(layers)}", where="--layers")
        return asked
    group = {layer: index for index, one in enumerate(plan.rope.groups) for layer in one.layers}
    kinds = [(layer, group[index]) for index, layer in enumerate(layers)]
    reached = 1 + max(kinds.index(kind) for kind in kinds)
    return min(max(FEWEST_LAYERS, reached), len(layers))


def random_tokens(vocab_size: int, seed: int) -> Tokens:
    """int64 ids, every one as likely as the other."""
    return np.random.default_rng(seed).integers(0, vocab_size, TOKEN_COUNT)


def choose_tokens(runner: LlamaCpp, path: Path, options: CheckOptions, vocab_size: int) -> Tokens:
    """int64 ids to run, at most TOKEN_COUNT: the user's, by the artefact's own vocabulary, or random ones.

    Raises RuntimeRefused where llama.cpp does not load the vocabulary.
    """
    if options.text is None and options.tokens is None:
        return random_tokens(vocab_size, options.seed)
    where = "--text" if options.tokens is None else "--tokens"
    text = (options.text or "")[:TEXT_LENGTH]
    given = runner.tokenize(path, text) if options.tokens is None else options.tokens
    if not given:
        raise BadInput("there is not one token in it", where=where)
    if bad := [token for token in given if not 0 <= token < vocab_size]:
        raise BadInput(f"the token {bad[0]} is not below the vocabulary's {vocab_size}", where=where)
    return np.array(given[:TOKEN_COUNT], dtype=np.int64)
