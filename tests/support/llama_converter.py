"""llama.cpp's own converter in one process for many models, which have no tokenizer if nothing else is said.

It recognises tokenizers by the hash of what they make of a fixed text, so that every model would need a real
vocabulary of 100 thousand tokens and more. RoPE does not depend on it: the files say `none` and how many.

As a script, argv[1] is the source tree, and argv[2] is --tokenizers where models have theirs; each line on
stdin is a checkpoint's directory, a file to write and its type.
"""

import subprocess
import sys
from pathlib import Path


class LlamaConverter:
    """A converter that has imported what it needs, which takes longer than its work."""

    def __init__(self, source: Path, *, tokenizers: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(source), *(["--tokenizers"] if tokenizers else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def convert(self, directory: Path, destination: Path, outtype: str = "f32") -> Path:
        """The checkpoint, in float32 if nothing is asked, as that converter understands it."""
        self._process.stdin.write(f"{directory}\t{destination}\t{outtype}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer == "done", answer or "the converter ended"
        return destination

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


def _leave_out_tokenizers(converter):
    from conversion.base import ModelBase, ModelType

    def without_tokenizer(model):
        model._set_vocab_none()
        model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])

    def model_class(name, mmproj=False):
        found = find(name, mmproj)
        for known in ModelBase._model_classes[ModelType.TEXT].values():
            if known.__name__ != "Mistral3Model":  # which hands everything on to another
                known.set_vocab = without_tokenizer
        return found

    find, converter.get_model_class = converter.get_model_class, model_class


def _serve(source, tokenizers):
    sys.path.insert(0, source)
    import convert_hf_to_gguf as converter

    if not tokenizers:
        _leave_out_tokenizers(converter)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        directory, destination, outtype = line.rstrip("\n").split("\t")
        sys.argv = ["convert", directory, "--outtype", outtype, "--outfile", destination]
        try:
            converter.main()
        except (Exception, SystemExit) as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), file=answers, flush=True)
        else:
            print("done", file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:] == ["--tokenizers"])
