"""How far the figures of one artefact move by themselves: `python -m tests.bench.baseline_noise`.

The same check with other threads and other processor instructions; the floors of
`yarnconv/verify/baseline.py` stand above what it prints.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from yarnconv.verify.baseline import KL_FLOOR, RELATIVE_FLOOR

FIXTURES = Path(__file__).parents[2] / "fixtures"
ARTEFACTS = (
    ("gguf", "tiny-llama", "16", "--outtype", "q8_0"),
    ("gguf", "passkey-llama", "4", "--outtype", "q4_0"),
    ("gguf", "passkey-llama", "4", "--outtype", "f16"),
    ("onnx", "tiny-llama", "16"),
)
SETTINGS = (
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"},
    {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
)
SMALL = 1e-9  # of KL: where nothing but rounding separates the logits


def yarnconv(*words: str, **settings: str) -> None:
    """Run the command line."""
    command = [sys.executable, "-m", "yarnconv", *words]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **settings})


def main() -> None:
    """Convert, check with every setting, and print the largest differences."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        for target, model, factor, *options in ARTEFACTS:
            made = Path(place) / f"{target}-{model}-{'-'.join(options)}{'.gguf' * (target == 'gguf')}"
            reference = str(FIXTURES / model)
            yarnconv(target, reference, "--factor", factor, *options, "-o", str(made))
            runs = []
            for settings in SETTINGS:
                words = ("check", str(made), "--reference", reference, "--output-json", str(report))
                yarnconv(*words, **settings)
                document = json.loads(report.read_text())
                runs.append([*document["windows"], *document["as_is"]["windows"]])
            same = [sorted(w["relative_max"] for w in windows) for windows in zip(*runs, strict=True)]
            kl = [sorted(w["kl_max"] for w in windows) for windows in zip(*runs, strict=True)]
            flips = [len({w["top1_agreement"] for w in windows}) > 1 for windows in zip(*runs, strict=True)]
            large = max((each[-1] / each[0] - 1.0 for each in kl if each[-1] >= SMALL), default=0.0)
            relative = max(each[-1] - each[0] for each in same)
            small = max((each[-1] - each[0] for each in kl if each[-1] < SMALL), default=0.0)
            print(
                f"{made.name}: relative_max by {relative:.1e} (floor {RELATIVE_FLOOR:g}), "
                f"kl_max below {SMALL:g} by {small:.1e} (floor {KL_FLOOR:g}), "
                f"above by {100 * large:.2g} %, top-1 of {sum(flips)} windows"
            )


if __name__ == "__main__":
    main()
