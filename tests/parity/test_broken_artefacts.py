"""Every kind of broken artefact is found and called by its name, on every target that can have it; no right
one is called broken. `python -m tests.bench.diagnosis_table` prints the whole.
"""

import pytest

from tests.support.broken import (
    FACTOR,
    FROZEN,
    GGUF_EDITS,
    IN_TABLES,
    ONNX_EDITS,
    PLANS,
    RIGHT,
    edited_gguf,
    edited_onnx,
    with_theta,
)
from tests.support.selection import product

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
GGUF, ONNX, ENGINE = "gguf", "onnx", "tensorrt"
# those of which an engine is built by default: a build takes five seconds
BUILT = {"scaling dropped", "temperature missing", "truncate dropped", "dynamic, scaled at every length"}


@pytest.fixture
def made(artefacts, onnx_artefacts, engines, checkpoints, yarnconv, tmp_path):
    """(target, family, rope options, config) -> an artefact of that plan."""

    def get(target, family, options, config=None):
        if config is not None:
            directory = with_theta(checkpoints(family), config["rope_theta"], tmp_path / "other")
            command = {GGUF: "gguf", ONNX: "onnx", ENGINE: "trt"}[target]
            out = tmp_path / ("made.gguf" if target == GGUF else "made")
            assert yarnconv(command, directory, *options, "-o", out)[0] == 0
            return out
        if target == GGUF:
            return artefacts(family, "q8_0", *options)
        return onnx_artefacts(family, *options) if target == ONNX else engines(family, *options)[0]

    return get


@pytest.fixture
def inspected(inspect):
    """Codes of what is worse than a note, and the exit code."""

    def run(path, *arguments):
        code, _, severe = inspect(path, *arguments)
        return severe, code

    return run


def cases():
    """(kind, target): every kind on every target, a family in turn; most engines with the slow ones."""
    number = 0
    for kind in (*PLANS, *FROZEN):
        for target in (GGUF, ONNX, ENGINE):
            if target == GGUF and kind in FROZEN:
                continue
            family = FAMILIES[number % len(FAMILIES)]
            # Qwen's architectures have no keys for these in a GGUF, which is refused
            slow = target == ENGINE and kind not in BUILT
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(kind, target, family, marks=marks, id=f"{kind}-{target}-{family}")
            number += 1


@pytest.mark.parametrize(("kind", "target", "family"), list(cases()))
def test_inspect_names_another_plan(kind, target, family, made, inspected, checkpoints):
    """Against the reference, first of all findings, and as an error."""
    case = (PLANS | FROZEN)[kind]
    path = made(target, family, case.made, case.config)
    codes, code = inspected(path, "--reference", checkpoints(family), *case.expected)
    assert (codes[0], code) == (case.inspect, 1)


@pytest.mark.parametrize("kind", GGUF_EDITS)
def test_inspect_names_what_was_done_to_a_gguf(kind, artefacts, inspected, tmp_path):
    case = GGUF_EDITS[kind]
    path = edited_gguf(artefacts("llama", "q8_0", *FACTOR), case.edit, tmp_path / "edited.gguf")
    assert inspected(path)[0] == ([] if case.inspect is None else [case.inspect])


@pytest.mark.parametrize("kind", ONNX_EDITS)
def test_inspect_names_what_was_done_to_an_onnx_model(kind, onnx_artefacts, checkpoints, inspected, tmp_path):
    case = ONNX_EDITS[kind]
    path = edited_onnx(onnx_artefacts("llama", *FACTOR), case.edit, tmp_path / "edited")
    assert inspected(path, "--reference", checkpoints("llama"), *FACTOR)[0] == [case.inspect]


def checked():
    """(kind, target): by default those that no test of tests/verify/test_diagnosis.py has."""
    by_default = {("another theta", GGUF), ("half the factor", ONNX), ("temperature twice", ONNX)}
    for kind in PLANS:
        for target in (GGUF, ONNX, ENGINE):
            marks = [] if (kind, target) in by_default else [pytest.mark.slow]
            yield pytest.param(kind, target, marks=marks)
    for kind in FROZEN:
        for target in (ONNX, ENGINE):
            yield pytest.param(kind, target, marks=[pytest.mark.slow])


@pytest.mark.parametrize(("kind", "target"), list(checked()))
def test_check_names_another_plan(kind, target, made, check, checkpoints):
    """By its logits."""
    case = (PLANS | FROZEN)[kind]
    path = made(target, "llama", case.made, case.config)
    code, report, stderr = check(path, checkpoints("llama"), *case.expected, "--weights", "none")
    assert code == 1, stderr
    assert report["diagnosis"]["label"] == case.check


def test_a_dynamic_base_that_an_exporter_froze(inspected, tmp_path):
    """As optimum writes it: plain up to the length that was traced, and the config beside it says dynamic."""
    from tests.support.torch_export import export_as_optimum, rope_config

    config = rope_config("default")
    config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    assert inspected(export_as_optimum(config, tmp_path / "frozen")) == (["plain-rope"], 1)
    assert inspected(export_as_optimum(rope_config("yarn"), tmp_path / "right")) == ([], 0)


@pytest.mark.parametrize(
    ("family", "method", "outtype"),
    list(product(FAMILIES, RIGHT, ("f32", "q8_0", "q4_k_m"), meet=[(0, 1), (1, 2)])),
)
def test_no_right_gguf_is_called_broken(method, family, outtype, artefacts, inspected, checkpoints):
    path = artefacts(family, outtype, *RIGHT[method])
    assert inspected(path, "--reference", checkpoints(family), *RIGHT[method]) == ([], 0)


@pytest.mark.parametrize(
    ("family", "method", "dtype"),
    list(product(FAMILIES, RIGHT | IN_TABLES, ("fp32", "fp16", "bf16", "int4"), meet=[(0, 1), (1, 2)])),
)
def test_no_right_onnx_model_is_called_broken(method, family, dtype, onnx_artefacts, inspected, checkpoints):
    options = (RIGHT | IN_TABLES)[method]
    path = onnx_artefacts(family, *options, "--dtype", dtype)
    assert inspected(path, "--reference", checkpoints(family), *options) == ([], 0)
