"""generate.py, which stands beside every engine. Without a GPU it ends where the engine would be loaded.

Tests that load it are marked, and compare with ONNX Runtime on the very graph that the engine was built of.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest

from fixtures.passkey import make_prompts
from tests.support.models import sample_tokens
from tests.targets.tensorrt.conftest import PASSKEY

DYNAMIC = ("--method", "dynamic-yarn", "--factor", "4", "--dtype", "fp16")
EXACT = ("--method", "dynamic-yarn", "--factor", "4", "--dtype", "fp32")
SCRIPTS = files("yarnconv") / "templates" / "tensorrt"


@pytest.fixture(scope="module")
def sidecar():
    """The script that reads yarnconv.json, as a module."""
    spec = importlib.util.spec_from_file_location("sidecar", SCRIPTS / "sidecar.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(directory, *arguments, **options):
    command = [sys.executable, directory / "generate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)


def refused(found, code, *messages):
    assert found.returncode == code, found.stderr
    for message in messages:
        assert message in found.stderr
    assert found.stderr.startswith("error: ")
    assert len(found.stderr.splitlines()) == 1
    assert found.stdout == ""


def run_tokens(directory, tokens, *arguments):
    found = run(directory, "--tokens", ",".join(map(str, tokens)), "--print-tokens", *arguments)
    assert found.returncode == 0, found.stderr
    return [int(token) for token in found.stdout.split(",")]


def edited(directory, out, **changes):
    """A copy whose sidecar has other values: "part__key" for a key in a part."""
    shutil.copytree(directory, out)
    path = out / "yarnconv.json"
    document = json.loads(path.read_text())
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = document
        for part in parts:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(document))
    return out


# without a GPU


@pytest.mark.parametrize("arguments", [("abc",), ("--tokens", "1,2,3", "--print-tokens")], ids=" ".join)
def test_a_machine_without_a_gpu(arguments, no_gpu, passkey_engines):
    refused(run(passkey_engines(*DYNAMIC), *arguments), 5, no_gpu, "an engine runs on a GPU only")


LONG = ",".join(["1"] * 512)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", LONG, "--print-tokens"], "512 tokens leave no room in a context of 512"),
        (["--tokens", "1,2,3", "--max-context", "3"], "leave no room in a context of 3"),
        (["abc", "--max-context", "513"], "the model's own is 512"),
        (["--tokens", "1,264"], "'264' is no token id below 264"),
        ([""], "the prompt is empty"),
        (["--prompt-file", "/nowhere"], "No such file"),
        (["--prompt-file", PASSKEY / "model.safetensors"], "not UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_found_before_a_gpu_is_asked_for(arguments, message, passkey_engines):
    refused(run(passkey_engines(*DYNAMIC), *arguments), 2, message)


def test_bad_usage(passkey_engines):
    for arguments in ([], ["abc", "--max-new-tokens", "0"], ["abc", "--top-p", "0.9"]):
        found = run(passkey_engines(*DYNAMIC), *arguments)
        assert found.returncode == 2
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("numpy", "pip install numpy tokenizers cuda-bindings"),
        ("tokenizers", "pip install numpy tokenizers cuda-bindings"),
        ("cuda.bindings", "pip install cuda-bindings"),
        ("tensorrt_rtx", "pip install tensorrt-rtx==1."),
    ],
)
def test_missing_package(module, line, passkey_engines):
    code = f"import sys, runpy; sys.modules[{module!r}] = None; sys.argv[1:] = ['abc'];"
    code += f"runpy.run_path({str(passkey_engines(*DYNAMIC) / 'generate.py')!r}, run_name='__main__')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    refused(found, 4, line)


def test_an_engine_of_the_other_tensorrt(passkey_engines, tmp_path):
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed")
    changes = {"runtime__name": "tensorrt", "runtime__version": "10.13.3.9"}
    refused(
        run(edited(passkey_engines(*DYNAMIC), tmp_path / "a", **changes), "abc"), 4, "tensorrt==10.13.3.9"
    )


def test_a_script_that_is_missing(passkey_engines, tmp_path):
    for name in ("generation.py", "engine.py", "sidecar.py"):
        directory = shutil.copytree(passkey_engines(*DYNAMIC), tmp_path / name)
        (directory / name).unlink()
        refused(run(directory, "abc"), 4, name.removesuffix(".py"), "the scripts that came with this one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "a later yarnconv"),
        ({"schema_version": "1"}, "schema_version"),
        ({"graph": None}, "no graph.cache_type"),
        ({"graph": [1]}, "no graph.cache_type"),
        ({"graph__cache_type": "fp64"}, "one of fp16, bf16, fp32"),
        ({"graph__cache_type": ["fp16"]}, "one of fp16, bf16, fp32"),
        ({"graph__layers": 10**9}, "graph.layers"),
        ({"graph__layers": True}, "graph.layers"),
        ({"graph__head_dim": 1e3}, "graph.head_dim"),
        ({"graph__max_context": -1}, "graph.max_context"),
        ({"graph__vocab_size": 2**40}, "graph.vocab_size"),
        ({"graph__bucket_contexts": []}, "graph.bucket_contexts"),
        ({"graph__bucket_contexts": [512, 128]}, "ascending"),
        ({"graph__bucket_contexts": "512"}, "a list of numbers"),
        ({"eos_token_ids": {"a": 1}}, "eos_token_ids"),
        ({"eos_token_ids": ["</s>"]}, "eos_token_ids"),
        ({"profiles": []}, "profiles"),
        ({"profiles": [7]}, "an object"),
        ({"profiles": [{"new_tokens": [1, 1]}]}, "profiles: new_tokens"),
        ({"profiles": [{"new_tokens": [3, 2, 1], "past_tokens": [0, 0, 0]}]}, "ascending"),
        ({"profiles": [{"new_tokens": [1, 1, 1], "past_tokens": [-1, 0, 0]}]}, "profiles: past_tokens"),
        ({"runtime__name": "os"}, "one of tensorrt, tensorrt-rtx"),
        ({"runtime__version": "1; rm -rf /"}, "runtime.version"),
        ({"runtime__name": None}, "no runtime.name"),
        ({"engine__file": "../model.engine"}, "a file beside it"),
        ({"engine__file": "/dev/zero"}, "a file beside it"),
        ({"engine__file": ".."}, "a file beside it"),
        ({"engine__file": "a\0b"}, "a?b"),
        ({"engine__file": "other.engine"}, "no such file"),
        ({"engine__file": "triton"}, "no such file"),
        ({"engine__bytes": 5}, "copy it again"),
    ],
    ids=str,
)
def test_a_sidecar_that_does_not_hold(changes, message, passkey_engines, tmp_path):
    refused(run(edited(passkey_engines(*DYNAMIC), tmp_path / "model", **changes), "abc"), 2, message)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "7", '{"schema_version": ' + "9" * 5000 + "}", "[" * 100_000, "\xff"], ids=repr
)
def test_a_sidecar_that_is_none(text, passkey_engines, tmp_path):
    directory = shutil.copytree(passkey_engines(*DYNAMIC), tmp_path / "model")
    (directory / "yarnconv.json").write_text(text, encoding="latin-1")
    refused(run(directory, "abc"), 2, "yarnconv.json: ")
    (directory / "yarnconv.json").unlink()
    refused(run(directory, "abc"), 2, "yarnconv.json: cannot be read")


def test_the_profiles_decide_how_many_tokens_are_run(sidecar):
    """By hand: prefill in chunks, a prefill that wants no past, a decode of at most two."""
    profile = sidecar.Profile
    prefill, decode = profile((1, 64, 128), (0, 0, 512), 640), profile((1, 1, 2), (1, 200, 512), 514)
    first = profile((1, 64, 128), (0, 0, 0), 128)
    both, apart = [prefill, decode], [first, decode]
    assert sidecar.choose(both, 0, 300) == (0, 128)
    assert sidecar.choose(both, 128, 300) == (0, 128)
    assert sidecar.choose(both, 300, 1) == (1, 1)
    assert sidecar.choose(both, 0, 1) == (0, 1)
    assert sidecar.choose(apart, 0, 300) == (0, 128)
    assert sidecar.choose(apart, 128, 172) == (1, 2)
    assert sidecar.choose(apart, 513, 1) is None
    assert sidecar.choose([profile((2, 2, 2), (0, 0, 9), 11)], 3, 1) is None
    assert sidecar.choose([profile((1, 8, 8), (0, 0, 9), 9)], 8, 4) == (0, 1)
    assert sidecar.reach(both) == sidecar.reach(apart) == 513
    assert sidecar.reach([first]) == 1
    assert sidecar.reach([decode]) == 0
    assert sidecar.reach([profile((1, 8, 8), (0, 0, 9), 9)]) == 9


def test_a_context_is_no_longer_than_the_profiles(passkey_engines, tmp_path):
    profiles = [{"name": "all", "new_tokens": [1, 1, 64], "past_tokens": [0, 0, 99]}]
    directory = edited(passkey_engines(*DYNAMIC), tmp_path / "model", profiles=profiles)
    refused(run(directory, "abc", "--max-context", "101"), 2, "the model's own is 100")


def test_what_the_script_calls_is_there():
    """The engine cannot be run here; that TensorRT and CUDA have what it calls can be seen."""
    trt = pytest.importorskip("tensorrt_rtx")
    from cuda.bindings import runtime

    text = (SCRIPTS / "engine.py").read_text()
    owners = {
        r"(?<!\w)(?:self\._)?engine\.(\w+)": trt.ICudaEngine,
        r"(?<!\w)(?:self\._)?context\.(\w+)": trt.IExecutionContext,
        r"self\._runtime\.(\w+)": trt.Runtime,
        r"(?<!\w)(?:self\._)?trt\.(\w+)": trt,
        r"(?<!\w)types\.(\w+)": trt.DataType,
        r"trt\.ILogger\.(\w+)": trt.ILogger,
        r"TensorLocation\.(\w+)": trt.TensorLocation,
        r"(?:_cuda|runtime)\.(cuda\w+)": runtime,
        r'_call\(\s*"(\w+)"': runtime,
        r"kinds\.(\w+)": runtime.cudaDeviceAttr,
        r"cudaMemcpyKind\.(\w+)": runtime.cudaMemcpyKind,
    }
    for pattern, owner in owners.items():
        names = set(re.findall(pattern, text))
        assert names, pattern
        assert {name for name in names if not hasattr(owner, name)} == set(), pattern


# on a GPU


@pytest.mark.gpu
def test_greedy_tokens_are_those_of_onnx_runtime(gpu, passkey_engines, onnx_written):
    """Through all buckets, in one piece and in chunks, and keys recalled at four times the context."""
    directory = passkey_engines(*EXACT, capability=gpu)
    tokens = sample_tokens(256, 100)
    for more in (["--max-new-tokens", "28"], ["--max-new-tokens", "180"], ["--max-context", "400"], []):
        for chunk in ("512", "37"):
            arguments = [*more, "--chunk", chunk]
            wanted = run_tokens(onnx_written(*EXACT), tokens, *arguments)
            assert run_tokens(directory, tokens, *arguments) == wanted
    for row in make_prompts(np.random.default_rng(11), 4, 512).tokens:
        assert run_tokens(directory, row[:508]) == run_tokens(onnx_written(*EXACT), row[:508])


@pytest.mark.gpu
def test_figures_and_text(gpu, passkey_engines):
    found = run(passkey_engines(*EXACT, capability=gpu), "abcabcabc", "--max-new-tokens", "5")
    assert found.returncode == 0, found.stderr
    assert "bucket 1 of 3" in found.stderr
    assert found.stdout.endswith("\n")


@pytest.mark.gpu
def test_an_engine_for_another_gpu(gpu, passkey_engines):
    other = "7.5" if gpu != "7.5" else "8.9"
    found = run(passkey_engines(*DYNAMIC, capability=other), "abc")
    refused(found, 5, "does not load it on this GPU", f"for {other}")


@pytest.mark.gpu
def test_more_context_than_the_gpu_has_memory_for(gpu, passkey_engines, tmp_path):
    profiles = [{"name": "all", "new_tokens": [1, 1, 64], "past_tokens": [0, 0, 2**30]}]
    changes = {"graph__max_context": 2**30, "graph__bucket_contexts": [128, 256, 2**30], "profiles": profiles}
    directory = edited(passkey_engines(*DYNAMIC, capability=gpu), tmp_path / "model", **changes)
    refused(run(directory, "abc", "--max-context", 2**30), 5, "GB left", "shorter context")
