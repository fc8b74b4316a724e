"""config.pbtxt, read by Triton's own schema."""

import copy
import importlib.util
import re
from importlib.metadata import files

import pytest

from yarnconv.targets.tensorrt.triton import triton_config, write_repository

SIDECAR = {
    "runtime": {"name": "tensorrt", "version": "10.13.3.9"},
    "graph": {
        "cache_type": "fp16",
        "last_token_only": False,
        "bucket_contexts": [512],
        "vocab_size": 264,
        "layers": 3,
        "key_value_heads": 4,
        "head_dim": 32,
    },
    "profiles": [{"name": "prefill"}, {"name": "decode"}],
}
BUCKETS = [128, 256, 512]


@pytest.fixture(scope="module")
def schema():
    """Triton's model_config.proto. By its file, because its package wants grpc."""
    pytest.importorskip("tritonclient")
    (path,) = (f for f in files("tritonclient") if str(f).endswith("tritonclient/grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("model_config_pb2", path.locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(schema):
    from google.protobuf import text_format

    return lambda text: text_format.Parse(text, schema.ModelConfig())


def edited(runtime="tensorrt", **graph):
    document = copy.deepcopy(SIDECAR)
    document["runtime"]["name"] = runtime
    document["graph"].update(graph)
    return document


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("buckets", [[512], BUCKETS], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32"])
def test_it_is_what_triton_reads(kind, buckets, last, parse, schema):
    sidecar = edited(cache_type=kind, bucket_contexts=buckets, last_token_only=last)
    text = triton_config(sidecar)
    found = parse(text)
    assert not text.startswith("# Triton does not")
    assert (found.platform, found.default_model_filename, found.max_batch_size) == (
        *("tensorrt_plan", "model.plan"),
        0,
    )
    assert [(group.kind, list(group.profile)) for group in found.instance_group] == [
        (schema.ModelInstanceGroup.KIND_GPU, ["0", "1"])
    ]
    assert found.version_policy.latest.num_versions == 1
    sides = {"past_key_values": found.input, "present": found.output}
    for side, tensors in sides.items():
        slots = [tensor for tensor in tensors if tensor.name.startswith(side)]
        assert [tensor.name for tensor in slots] == [
            f"{side}.{layer}.{part}" for layer in range(3) for part in ("key", "value")
        ]
        assert {(schema.DataType.Name(t.data_type), tuple(t.dims)) for t in slots} == {
            (f"TYPE_{kind.upper()}", (-1, 4, -1, 32))
        }
    rest = {t.name: (t.data_type, tuple(t.dims)) for t in (*found.input, *found.output) if "." not in t.name}
    whole = schema.TYPE_INT64, (-1, -1)
    assert rest == {
        **dict.fromkeys(("input_ids", "attention_mask", "position_ids"), whole),
        **({"rope_context": (schema.TYPE_INT64, (1,))} if len(buckets) > 1 else {}),
        "logits": (schema.TYPE_FP32, (-1, 1 if last else -1, 264)),
    }
    assert not any(t.HasField("reshape") for t in (*found.input, *found.output))


@pytest.mark.parametrize(
    ("sidecar", "reasons"),
    [
        (edited(runtime="tensorrt-rtx"), ["yarnconv trt --runtime tensorrt"]),
        (edited("tensorrt-rtx", bucket_contexts=BUCKETS), ["--runtime tensorrt"]),
    ],
    ids=["static", "dynamic"],
)
def test_what_triton_cannot_serve_is_said_first(sidecar, reasons, parse):
    text = triton_config(sidecar)
    first = re.match(r"(#.*\n)*", text).group()
    assert first.startswith("# Triton does not serve this engine.")
    for reason in reasons:
        assert reason in first
    parse(text)


def test_more_profiles(parse):
    sidecar = edited()
    sidecar["profiles"].append({"name": "long"})
    assert list(parse(triton_config(sidecar)).instance_group[0].profile) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["llama", "../../etc", "a b/c", "..", ""])
def test_the_repository(name, tmp_path, parse):
    """Whole where Triton can serve the engine, its own file being the engine's; only told about else."""
    for runtime, served in (("tensorrt", True), ("tensorrt-rtx", False)):
        directory = tmp_path / runtime
        directory.mkdir()
        (directory / "model.engine").write_bytes(b"engine")
        write_repository(directory, name, edited(runtime))
        (model,) = (directory / "triton").iterdir()
        parse((model / "config.pbtxt").read_text())
        plans = list(model.glob("1/*"))
        assert [plan.samefile(directory / "model.engine") for plan in plans] == ([True] if served else [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tensorrt", "tensorrt-rtx"]
