"""The check must be able to fail: every fault, in every type, on every family. And it must not cry wolf."""

import itertools
import json

import pytest

from tests.parity.test_llama_cpp import BEYOND_THE_KEYS, METHODS
from tests.support.faults import FAULTS
from tests.support.gguf_editing import load
from tests.support.selection import product

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TYPES = ("f32", "q8_0", "q4_k_m")
OTHER_TYPES = ("bf16", "f16", "q6_k", "q5_k_m", "iq4_nl")


@pytest.mark.parametrize(
    ("family", "fault", "outtype"), list(product(FAMILIES, FAULTS, TYPES, meet=[(1, 2), (0, 2)]))
)
def test_fault_is_found(family, fault, outtype, artefacts, checkpoints, yarnconv, tmp_path):
    """With the options given: what the artefact says of itself does not count."""
    edit, wrong = FAULTS[fault]
    file = load(artefacts(family, outtype, "--factor", "4"))
    edit(file)
    path = file.write(tmp_path / "faulty.gguf")
    code, stdout, stderr = yarnconv(
        "check", path, "--reference", checkpoints(family), "--factor", "4", "--json"
    )
    assert code == 1, stderr
    report = json.loads(stdout)
    assert report["parity"] is False
    failed = {name for name, verdict in report["verdicts"].items() if verdict == "fails"}
    assert failed == wrong, report["reasons"]


def right_cases():
    """Every method in the types that have faults above, the families in turn; in other types YaRN."""
    yield from product(FAMILIES, METHODS, TYPES, meet=[(1, 2)])
    yield from product(FAMILIES, ["yarn"], OTHER_TYPES, meet=[])
    for case in itertools.product(FAMILIES, [m for m in METHODS if m != "yarn"], OTHER_TYPES):
        yield pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(("family", "method", "outtype"), list(right_cases()))
def test_right_artefacts_hold(family, method, outtype, artefacts, checkpoints, yarnconv):
    options = METHODS[method][0]
    path = artefacts(family, outtype, *options)
    code, stdout, stderr = yarnconv("check", path, "--reference", checkpoints(family), *options, "--json")
    assert code == 0, json.loads(stdout)["reasons"] if stdout else stderr


@pytest.mark.parametrize("case", BEYOND_THE_KEYS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_plans_beyond_the_keys_hold(family, case, artefacts, checkpoints, yarnconv):
    """Carried by rope_freqs; and they fail where the file says the plain betas."""
    options = ("--factor", "4", *BEYOND_THE_KEYS[case][0])
    path = artefacts(family, "q4_k_m", *options)
    assert yarnconv("check", path, "--reference", checkpoints(family), *options)[0] == 0
    path = artefacts(family, "q4_k_m", "--factor", "4")
    assert yarnconv("check", path, "--reference", checkpoints(family), *options)[0] == 1
