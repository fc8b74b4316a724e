"""The check of an ONNX model must be able to fail, on every fault; and must not cry wolf."""

import itertools

import pytest

from tests.parity.test_llama_cpp import BEYOND_THE_KEYS
from tests.support.onnx_faults import DYNAMIC_FAULTS, FAULTS, Editor
from tests.support.selection import product

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = ("fp32", "fp16", "int4", "fp8")
YARN = ("--factor", "4")
DYNAMIC = (*YARN, "--method", "dynamic-yarn")


def fault_cases():
    """Every fault in one form of each kind; all forms of it under `slow`."""
    forms = list(itertools.product(FAMILIES, DTYPES))
    for number, fault in enumerate((*FAULTS, *DYNAMIC_FAULTS)):
        for place, (family, dtype) in enumerate(forms):
            default = place == (5 * number) % len(forms)
            for options in (YARN, DYNAMIC):
                if fault in DYNAMIC_FAULTS and options is YARN:
                    continue
                plain = default and (options is DYNAMIC) == (number % 2 == 0 or fault in DYNAMIC_FAULTS)
                yield pytest.param(fault, family, dtype, options, marks=() if plain else pytest.mark.slow)


@pytest.mark.parametrize(("fault", "family", "dtype", "options"), list(fault_cases()))
def test_fault_is_found(fault, family, dtype, options, onnx_artefacts, checkpoints, check, tmp_path):
    edit, wrong = {**FAULTS, **DYNAMIC_FAULTS}[fault]
    editor = Editor(onnx_artefacts(family, *options, "--dtype", dtype), tmp_path / "faulty")
    edit(editor)
    code, report, stderr = check(editor.save(), checkpoints(family), *options)
    assert code == 1, stderr
    failed = {name for name, verdict in report["verdicts"].items() if verdict == "fails"}
    assert failed == wrong, report["reasons"]


METHODS = {
    "none": (),
    "linear": (*YARN, "--method", "linear"),
    "ntk": (*YARN, "--method", "ntk"),
    "ntk-by-parts": (*YARN, "--method", "ntk-by-parts"),
    "yarn": YARN,
    "dynamic-yarn": DYNAMIC,
    "dynamic-ntk": (*YARN, "--method", "dynamic-ntk"),
}
FORMS = ((), ("--kv", "concat"), ("--dialect", "ort-cuda"), ("--link-weights",), ("--last-token-only",))


def right_cases():
    """Every method in every dtype, every family in every form of a graph."""
    return product(FAMILIES, METHODS, DTYPES, FORMS, meet=[(1, 2), (0, 3)])


@pytest.mark.parametrize(("family", "method", "dtype", "form"), list(right_cases()))
def test_right_models_hold(family, method, dtype, form, onnx_artefacts, checkpoints, check):
    directory = onnx_artefacts(family, *METHODS[method], "--dtype", dtype, *form)
    code, report, stderr = check(directory, checkpoints(family), *METHODS[method])
    assert code == 0, report["reasons"] if report else stderr


@pytest.mark.parametrize("case", BEYOND_THE_KEYS)
def test_betas_and_truncation(case, onnx_artefacts, checkpoints, check):
    """Exact here; and a plan without them fails."""
    options = (*YARN, *BEYOND_THE_KEYS[case][0])
    directory = onnx_artefacts("qwen3", *options)
    assert check(directory, checkpoints("qwen3"), *options)[0] == 0
    assert check(directory, checkpoints("qwen3"), *YARN)[0] == 1
