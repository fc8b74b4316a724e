"""Every family x target x method: what the matrix test runs, and what the README's table says.

A cell's outcome is what the targets themselves say of a tiny checkpoint's plan; nobody lists it by hand. Run
as a script it writes the table into README.md; with --check it fails where that is stale.

    python -m tests.parity.matrix
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.models import ORIGINAL_CONTEXT, make_checkpoint
from tests.support.selection import fewest
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.errors import Inexpressible
from yarnconv.model.family import families
from yarnconv.plan import ConversionPlan, plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.gguf.refusals import runtime_of

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- support table: python -m tests.parity.matrix -->", "<!-- end of the support table -->"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model of a family. name: in the table. scaled: what its config's own scaling is called, if it has one
    that is kept where no option is given. config: besides the tiny configuration.
    """

    name: str
    family: str
    scaled: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


def _theta(family: str) -> dict[str, float]:
    tiny = families()[family].tiny
    return {"rope_theta": tiny.get("rope_theta", 10000.0)}


def _longrope(pairs: int) -> dict[str, Any]:
    """Two sets that differ clearly, the one nearly plain."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.01 * pair for pair in range(pairs)],
        "long_factor": [1.0 + 0.2 * pair for pair in range(pairs)],
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    }


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
GEMMA_LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
OWN = {
    "llama": Variant(
        name="llama 3.1",
        family="llama",
        scaled="llama3",
        config={"max_position_embeddings": 1024, "rope_parameters": LLAMA3},
    ),
    "phi3": Variant(
        name="phi3 128k",
        family="phi3",
        scaled="longrope",
        config={"max_position_embeddings": 1024, "rope_parameters": _longrope(32)},
    ),
    "gemma3_text": Variant(
        name="gemma3 4b+",
        family="gemma3_text",
        scaled="linear",
        config={"rope_parameters": GEMMA_LINEAR},
    ),
}
OWN |= {
    "gpt_oss": Variant(
        name="gpt_oss, as published",
        family="gpt_oss",
        scaled="yarn",
        config={
            "max_position_embeddings": 1024,
            "rope_parameters": {**YARN, "rope_theta": 10000.0, "truncate": False},
        },
    ),
    "deepseek_v3": Variant(
        name="deepseek_v3, mscales",
        family="deepseek_v3",
        scaled="yarn",
        config={
            "max_position_embeddings": 1024,
            "rope_parameters": {**YARN, "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
}
NARROW = Variant(name="mistral, window", family="mistral", config={"sliding_window": 64})
# llama.cpp's architecture has windows in models of 64 layers, and in no others
EXAONE_WINDOWS = Variant(
    name="exaone4, windows, not 64 layers",
    family="exaone4",
    config={"sliding_window": 64, "layer_types": None, "num_hidden_layers": 4},
)


def variants() -> list[Variant]:
    """Of every data file one, and those whose config brings a scaling or a narrow window."""
    found = []
    for name, family in families().items():
        own = family.tiny.get("rope_parameters", {}).get("rope_type", "default")
        scaled = own if own != "default" else None
        found.append(Variant(name=name, family=name, scaled=scaled))
        found += [OWN[name]] if name in OWN else []
        found += [one for one in (NARROW, EXAONE_WINDOWS) if one.family == name]
    return found


METHODS: dict[str, RopeRequest] = {
    "none": RopeRequest(method="none"),
    "own": RopeRequest(),
    "linear": RopeRequest(method="linear", factor=4.0),
    "ntk": RopeRequest(method="ntk", factor=4.0),
    "ntk-by-parts": RopeRequest(method="ntk-by-parts", factor=4.0),
    "yarn": RopeRequest(factor=4.0),
    "dynamic-ntk": RopeRequest(method="dynamic-ntk", factor=4.0),
    "dynamic-yarn": RopeRequest(method="dynamic-yarn", factor=4.0),
}
TARGETS = {
    "gguf": ("GGUF, llama.cpp", ("gguf",)),
    "onnx in-place": ("ONNX, in-place cache", ("onnx", "--kv", "in-place")),
    "onnx concat": ("ONNX, concatenated cache", ("onnx", "--kv", "concat")),
    "trt": ("TensorRT", ("trt",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination."""

    variant: Variant
    target: str
    method: str

    @property
    def name(self) -> str:
        """For pytest and for people."""
        return f"{self.variant.name} | {self.target} | {self.method}"

    @property
    def options(self) -> list[str]:
        """On the command line."""
        request = METHODS[self.method]
        options = [] if request.method in {None, "auto"} else ["--method", str(request.method)]
        return options + ([] if request.factor is None else ["--factor", f"{request.factor:g}"])


def cells() -> list[Cell]:
    """All of them. A config's own scaling is a method of those that have one."""
    return [
        Cell(variant=variant, target=target, method=method)
        for variant in variants()
        for target in TARGETS
        for method in METHODS
        if method != "own" or variant.scaled is not None
    ]


def chosen_by_default() -> list[Cell]:
    """The fewest in which every runtime meets every model, every target every method. (That every model
    meets every target, or every method, takes more.)
    """

    def goals(cell: Cell) -> set[tuple[str, str]]:
        runtime = cell.target.split()[0]
        return {(runtime, cell.variant.name), (cell.target, cell.method)}

    return fewest(cells(), facets=lambda cell: {cell.target, cell.method}, goals=goals)


def checkpoint_of(variant: Variant, directory: Path) -> Path:
    """A tiny seeded checkpoint."""
    return make_checkpoint(directory, variant.family, **variant.config)


def refusal(plan: ConversionPlan, target: str) -> str | None:
    """Why a target does not write a plan; None where it does. It is asked, not run."""
    from yarnconv.targets.gguf.target import GgufOptions
    from yarnconv.targets.gguf.target import prepare as prepare_gguf
    from yarnconv.targets.onnx.target import OnnxOptions
    from yarnconv.targets.onnx.target import prepare as prepare_onnx
    from yarnconv.targets.tensorrt.target import TensorRtOptions, graph_options

    try:
        if target == "gguf":
            prepare_gguf(plan, GgufOptions(outtype="f32"))
        elif target == "trt":
            graph_options(plan, TensorRtOptions())
        else:
            prepare_onnx(plan, OnnxOptions(kv="in-place" if target == "onnx in-place" else "concat"))
    except Inexpressible as error:
        return error.what
    return None


def _by_launch(plan: ConversionPlan) -> bool:
    """Whether presets of llama-server carry a plan that no GGUF does."""
    from yarnconv.targets.gguf.deployment.from_checkpoint import carried_plan

    try:
        return carried_plan(plan, ("llama-server",)) is not plan
    except Inexpressible:
        return False


def _rows(root: Path) -> Iterator[tuple[Variant, str, dict[str, list[str]]]]:
    """Of each model llama.cpp's architecture and, by target, the methods that it is written with."""
    for number, variant in enumerate(variants()):
        directory = checkpoint_of(variant, root / str(number))
        marks: dict[str, list[str]] = {target: [] for target in TARGETS}
        with open_checkpoint(directory) as checkpoint:
            for method, request in METHODS.items():
                if method == "own" and variant.scaled is None:
                    continue
                plan = plan_conversion(checkpoint, request)
                shown = f"own {variant.scaled}" if method == "own" else method
                for target in TARGETS:
                    if refusal(plan, target) is None:
                        marks[target].append(shown)
                    elif target == "gguf" and _by_launch(plan):
                        marks[target].append(f"{shown}*")
            runtime = runtime_of(plan_conversion(checkpoint, METHODS["yarn"]))
        yield variant, runtime.name, marks


def _cell(said: Sequence[str], everything: Sequence[str]) -> str:
    plain = [name.removesuffix("*") for name in said]
    without = [name for name in everything if name not in plain]
    starred = [name for name in said if name.endswith("*")]
    text = "all" if not without else f"all but {', '.join(without)}" if said else "refused"
    return text + (f" ({', '.join(starred)})" if starred else "")


def table() -> str:
    """The table, as Markdown."""
    lines = [
        f"| family | such as | {' | '.join(title for title, _ in TARGETS.values())} |",
        "|" + "---|" * (len(TARGETS) + 2),
    ]
    with tempfile.TemporaryDirectory() as directory:
        for variant, architecture, marks in _rows(Path(directory)):
            own = [f"own {variant.scaled}"] if variant.scaled is not None else []
            everything = [*(m for m in METHODS if m != "own"), *own]
            name = variant.name if not own else f"{variant.name} ({own[0]})"
            example = families()[variant.family].example_models[0] if variant.name == variant.family else ""
            said = {target: _cell(marks[target], everything) for target in TARGETS}
            said["gguf"] = f"`{architecture}`: {said['gguf']}"
            lines.append(f"| {name} | {example} | {' | '.join(said.values())} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """README's text with the table as it is now."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Write the table, or compare."""
    text = README.read_text(encoding="utf-8")
    made = updated(text)
    if "--check" in arguments:
        return int(made != text)
    README.write_text(made, encoding="utf-8")
    print(table_of(made))
    return 0


def table_of(text: str) -> str:
    """The table within README's text."""
    return text.split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
