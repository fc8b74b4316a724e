"""How far a shift of llama.cpp's cache moves the logits behind it: `python -m tests.support.key_shift GGUF`.

RoPE sees differences of positions only, so a cache whose tokens all move by as many positions has to give
the next token, moved likewise, the logits that it would have had. Prints the relative error. A process of
its own, because an assertion in ggml kills the interpreter.
"""

import subprocess
import sys
from pathlib import Path

TOKENS, SHIFT = 200, 64


def measure(path: Path) -> float:
    """Relative error of the logits behind a shift."""
    command = [sys.executable, "-m", "tests.support.key_shift", str(path)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stdout)


def main(path: str) -> None:
    import llama_cpp

    from tests.support.models import relative_error, sample_tokens
    from yarnconv.verify.runners.llama_cpp_worker import MAIN, Decoder, Log, loaded_model, open_context

    log, tokens = Log(), sample_tokens(256, TOKENS + 1)
    with loaded_model(path, log) as model, open_context(model, TOKENS + SHIFT + 1, log) as context:
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        decoder = Decoder(context, vocabulary, log)

        def next_logits(shift):
            llama_cpp.llama_memory_clear(decoder.memory, True)
            list(decoder._feed(tokens[:TOKENS], list(range(TOKENS)), MAIN, TOKENS))
            if shift:
                llama_cpp.llama_memory_seq_add(decoder.memory, MAIN, 0, -1, shift)
            return next(iter(decoder._feed(tokens[TOKENS:], [TOKENS + shift], MAIN, 0)))

        print(relative_error(next_logits(SHIFT), next_logits(0)))
        decoder.close()


if __name__ == "__main__":
    main(sys.argv[1])
