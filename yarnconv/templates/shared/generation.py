"""What every generate.py shares: a prompt in, text out, whatever runtime is between them.

Stands beside it and is imported by it: `Model` and `Conversation` are completed there, `main` is the command.
Needs numpy and tokenizers. Text goes to stdout as it comes, figures to stderr.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
STEP = 256  # slots by which a context grows that was not declared
LONGEST_CHARACTER = 8  # tokens; what is no character by then never will be one


class Refusal(Exception):
    """What was found and what to do about it; ends the command with `code`."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class Model:
    """What a model says of itself; a runtime's script sets the attributes.

    vocabulary: token ids are below it. buckets: the longest context that each set of frequencies serves,
    ascending. end_tokens: those that end an answer.
    """

    vocabulary: int
    max_context: int
    buckets: list[int]
    end_tokens: set[int]

    def bucket(self, context: int) -> int:
        """Which set of frequencies a context gets."""
        return sum(reach < context for reach in self.buckets[:-1])

    def start(self, context: int) -> None:
        """Whatever takes long, once the request is known to be sound. context: the longest it may become."""

    def close(self) -> None:
        """Give back what does not go with the process."""


class Conversation:
    """Tokens, and the keys and values of those that were run.

    context: the longest it may become, declared to the model at once; None lets it grow to the model's own.
    chunk: tokens run at a time. reruns: how often all tokens were run again for another bucket.
    """

    def __init__(self, model: Model, context: int | None = None, chunk: int = 512) -> None:
        self.model = model
        self.grows = context is None
        self.limit = model.max_context if context is None else min(context, model.max_context)
        self.chunk = chunk
        self.tokens: list[int] = []
        self.declared = 0
        self.reruns = 0
        self.cached = 0  # of the tokens, that many were run
        self._logits: Any = None

    def next_logits(self) -> Any:
        """float32[vocabulary]: what may follow the tokens. Runs those that were not run yet."""
        if len(self.tokens) > self.limit:
            raise Refusal(f"{len(self.tokens)} tokens do not fit into the context of {self.limit}")
        if len(self.tokens) > self.declared:
            needed = min(len(self.tokens) + 1, self.limit)  # room for the answer
            reach = self.model.buckets[self.model.bucket(needed)]
            self.declare(min(needed + STEP, reach, self.limit) if self.grows else self.limit)
        while self.cached < len(self.tokens):
            self._logits = self._run(self.tokens[self.cached : self.cached + self.chunk])
        if not np.isfinite(self._logits).all():
            raise Refusal(f"the model's answer after {self.cached} tokens is no number", 70)
        return self._logits

    def declare(self, context: int) -> None:
        """Tell the model of a longer context. What was run stays only if the frequencies do."""
        if self.cached and self.model.bucket(context) != self.model.bucket(self.declared):
            self.cached = 0
            self.reruns += 1
        self._make_room(context)
        self.declared = context

    def _make_room(self, context: int) -> None:
        """Caches for `context` tokens, with what was run still in them."""
        raise NotImplementedError

    def _run(self, tokens: list[int]) -> Any:
        """Run the next tokens, or the first of them, and count them in `cached`. Returns the logits after the
        last one that was run.
        """
        raise NotImplementedError


Choose = Callable[[Any], int]


def greedy(logits: Any) -> int:
    """The likeliest token."""
    return int(logits.argmax())


def sampler(temperature: float, top_p: float, seed: int | None) -> Choose:
    """Draws from the fewest tokens that together have the probability top_p."""
    generator = np.random.default_rng(None if seed is None else seed % 2**64)

    def choose(logits: Any) -> int:
        shares = np.exp((logits - logits.max()).astype(np.float64) / temperature)
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1]
        return int(generator.choice(kept, p=shares[kept] / shares[kept].sum()))

    return choose


def generate(
    conversation: Conversation,
    count: int | None = None,
    choose: Choose = greedy,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """New tokens, appended to the conversation as they come, until one is in `stop`, `count` are made or the
    context is full.
    """
    made = 0
    while len(conversation.tokens) < conversation.limit and made != count:
        token = choose(conversation.next_logits())
        conversation.tokens.append(token)
        made += 1
        yield token
        if token in stop:
            return


class TextStream:
    """Text of tokens as they come; a character that is not whole yet waits for the rest of it."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._before = prompt  # blanks depend on what stands before, so the last text is decoded again
        self._shown = len(tokenizer.decode(prompt).rstrip("\N{REPLACEMENT CHARACTER}"))
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """What can be shown now."""
        self._new.append(token)
        text = self._tokenizer.decode([*self._before, *self._new])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._new) < LONGEST_CHARACTER:
            return ""
        return self.rest()

    def rest(self) -> str:
        """What waits, as it is."""
        text: str = self._tokenizer.decode([*self._before, *self._new])[self._shown :]
        self._before, self._new = self._new, []
        self._shown = len(self._tokenizer.decode(self._before))
        return text


def read_prompt(arguments: argparse.Namespace, tokenizer: Any, vocabulary: int) -> list[int]:
    """The prompt's tokens."""
    if arguments.tokens is not None:
        words = arguments.tokens.replace(",", " ").split()
        tokens = [int(word) if word.isdecimal() and len(word) < 10 else vocabulary for word in words]
        for word, token in zip(words, tokens, strict=True):
            if token >= vocabulary:
                raise Refusal(f"--tokens: {word[:40]!r} is no token id below {vocabulary}")
    else:
        try:
            file = arguments.prompt_file
            text = arguments.prompt if file is None else file.read_text("utf-8")
            tokens = tokenizer.encode(text.encode().decode()).ids  # an argument's stray bytes end here
        except OSError as error:
            raise Refusal(f"{arguments.prompt_file}: {error.strerror}") from None
        except UnicodeError:
            raise Refusal("the prompt is not UTF-8") from None
    if not tokens:
        raise Refusal("the prompt is empty")
    return tokens


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer beside the model."""
    path = directory / TOKENIZER
    if not path.is_file():
        raise Refusal(f"{path}: no such file. Give --tokens with --print-tokens, or put the tokenizer there")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # what it raises is a bare Exception
        raise Refusal(f"{path}: {error}") from None


def number(text: str) -> float:
    """Above 0, for argparse, which makes a message of a ValueError and of this function's name."""
    if not 0.0 < float(text) < 1e6:
        raise ValueError
    return float(text)


def count(text: str) -> int:
    """Whole and above 0, likewise."""
    if not 0 < int(text) < 2**31:
        raise ValueError
    return int(text)


def command_line() -> argparse.ArgumentParser:
    """The options that every runtime has."""
    parser = argparse.ArgumentParser(description="Generate text with the model beside this file.")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("prompt", nargs="?", help="text to continue")
    prompt.add_argument("--prompt-file", type=Path, help="file with the text to continue")
    prompt.add_argument("--tokens", help="token ids to continue, such as 1,2,3")
    parser.add_argument("--print-tokens", action="store_true", help="print token ids instead of text")
    parser.add_argument("--max-new-tokens", type=count, help="without it, as long as it goes on")
    parser.add_argument("--max-context", type=count, help="context to declare [prompt and new tokens]")
    parser.add_argument("--chunk", type=count, default=512, help="tokens of the prompt run at a time [512]")
    parser.add_argument("--temperature", type=number, help="draw the tokens; without it, the likeliest one")
    parser.add_argument("--top-p", type=number, help="share of probability to draw from [1]")
    parser.add_argument("--seed", type=int, help="of the draws")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for."""
    arguments = parser.parse_args()
    if arguments.temperature is None and (arguments.top_p, arguments.seed) != (None, None):
        parser.error("--top-p and --seed need --temperature")
    return arguments


def begin(
    arguments: argparse.Namespace, model: Model, kind: type[Conversation], prompt: list[int]
) -> Conversation:
    """A conversation with the prompt in it, not run yet, and with room for an answer."""
    context = arguments.max_context
    if context is not None and context > model.max_context:
        raise Refusal(f"--max-context {context}: the model's own is {model.max_context}")
    if context is None and arguments.max_new_tokens is not None:
        context = len(prompt) + arguments.max_new_tokens
    conversation = kind(model, context, arguments.chunk)
    if len(prompt) >= conversation.limit:
        raise Refusal(f"the prompt's {len(prompt)} tokens leave no room in a context of {conversation.limit}")
    conversation.tokens.extend(prompt)
    return conversation


def report(conversation: Conversation, made: int, before: float, after: float) -> str:
    """What it took. before, after: seconds up to the first new token, and from there on."""
    model, read = conversation.model, len(conversation.tokens) - made
    parts = [
        f"prompt of {read} tokens in {before:.2f} s ({read / before:.0f}/s)",
        f"{made - 1} after the first new one in {after:.2f} s ({(made - 1) / after:.1f}/s)",
        f"context {conversation.declared} of at most {model.max_context}",
        f"bucket {model.bucket(conversation.declared) + 1} of {len(model.buckets)}",
        f"all run again {conversation.reruns} times",
    ]
    return ", ".join(parts)


def answer(arguments: argparse.Namespace, conversation: Conversation, tokenizer: Any) -> None:
    """Generate, show, and say what it took."""
    prompt, stop = list(conversation.tokens), conversation.model.end_tokens
    choose: Choose = greedy
    if arguments.temperature is not None:
        choose = sampler(arguments.temperature, arguments.top_p or 1.0, arguments.seed)
    text = None if arguments.print_tokens else TextStream(tokenizer, prompt)
    started, first, made = time.perf_counter(), 0.0, 0
    for token in generate(conversation, arguments.max_new_tokens, choose, stop):
        first = first or time.perf_counter()
        if text is None:
            print(f"{',' if made else ''}{token}", end="", flush=True)
        elif token not in stop:
            print(text.add(token), end="", flush=True)
        made += 1
    print("" if text is None else text.rest(), flush=True)
    print(report(conversation, made, first - started, time.perf_counter() - first), file=sys.stderr)
    if len(conversation.tokens) == conversation.limit and made != arguments.max_new_tokens:
        print(f"stopped: the context of {conversation.limit} is full", file=sys.stderr)


Load = Callable[[argparse.Namespace, Path], Model]


def run(arguments: argparse.Namespace, directory: Path, load: Load, kind: type[Conversation]) -> None:
    """One request, from the command line to its figures."""
    ids_only = arguments.print_tokens and arguments.tokens is not None
    tokenizer = None if ids_only else read_tokenizer(directory)
    model = load(arguments, directory)
    try:
        prompt = read_prompt(arguments, tokenizer, model.vocabulary)
        conversation = begin(arguments, model, kind, prompt)
        model.start(conversation.limit)
        answer(arguments, conversation, tokenizer)
    finally:
        model.close()


def main(parser: argparse.ArgumentParser, directory: Path, load: Load, kind: type[Conversation]) -> int:
    """The command's exit code: 2 bad input, 4 a missing package, 130 interrupted.

    directory: the model's. load: reads it. kind: how the runtime keeps a conversation.
    """
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        run(parse(parser), directory, load, kind)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
