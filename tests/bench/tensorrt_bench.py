"""What building an engine costs: time and memory of the whole command, beside its weights.

    python -m tests.bench.tensorrt_bench [--work DIRECTORY] [--runs N]

Needs tensorrt-rtx and no GPU. The models are random weights in bfloat16, so that TensorRT converts for fp16
and does not for bf16. A table of 32768 positions, a prefill profile of up to 2048 new tokens, a decode
profile, one to four sequences: as those were built whose figures stand beside.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from tests.bench.big_model import make_big_model
from tests.bench.measuring import measure

SHAPE_125M = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# name -> (layers, shape, build seconds and peak of resident memory of a hand-written graph, measured once)
MODELS = {"125 M": (12, SHAPE_125M, "5", "1.1"), "1.24 B": (16, None, "30 (1.1 B)", "6.1 (1.1 B)")}
OPTIONS = ("--factor", "4", "--max-context", "32768", "--max-batch", "4", "--force")
ALLOWED_FIXED, ALLOWED_PER_WEIGHT = 1e9, 2.5


def main():
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    print("| model | type | s | of that TensorRT | peak GB | with mapped files | allowed | engine GB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (layers, shape, seconds, peak) in MODELS.items():
        model = make_big_model(arguments.work / f"tensorrt-{name.replace(' ', '')}", layers, shape)
        for dtype in ("bf16", "fp16", "int4"):
            out = arguments.work / "engine"
            command = [sys.executable, "-m", "yarnconv", "trt", str(model), *OPTIONS]
            command += ["--dtype", dtype, "-o", str(out)]
            costs, builds = [], []
            for _ in range(arguments.runs):
                costs.append(measure(command))
                sidecar = json.loads((out / "yarnconv.json").read_text())
                builds.append(sidecar["build"]["seconds"])
            engine = sidecar["engine"]["bytes"]
            allowed = (ALLOWED_FIXED + ALLOWED_PER_WEIGHT * engine) / 1e9
            figures = (
                f"{statistics.median(c.seconds for c in costs):.1f}",
                f"{statistics.median(builds):.1f}",
                f"{max(c.peak_anonymous for c in costs) / 1e9:.2f}",
                f"{max(c.peak_proportional for c in costs) / 1e9:.2f}",
                f"{allowed:.2f}",
                f"{engine / 1e9:.2f}",
            )
            print(f"| {name} | {dtype} | {' | '.join(figures)} |", flush=True)
        print(f"| {name} | fp16, a graph written by hand | | {seconds} | | {peak} (resident) | | |")
    shutil.rmtree(arguments.work / "engine", ignore_errors=True)


if __name__ == "__main__":
    main()
