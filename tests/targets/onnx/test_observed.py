"""What RoPE a model carries is read from its bytes, whoever made it."""

import json

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.support.genai_builder import build
from tests.support.models import make_checkpoint, sharp_model
from tests.support.observed import assert_agrees, read
from tests.support.onnx_faults import Editor
from tests.support.tokenizer_files import write_byte_level
from tests.support.torch_export import ROPES, export, export_as_optimum, reference, rope_config

YARN = ("--factor", "4", "--method", "yarn")
DYNAMIC = ("--factor", "4", "--method", "dynamic-yarn")

# what this tool wrote


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("yarn", ()),
        ("yarn", ("--dtype", "int4")),
        ("yarn", ("--dtype", "fp16")),
        ("dynamic-yarn", ()),
        ("dynamic-yarn", ("--kv", "concat")),
        ("linear", ()),
        ("ntk", ()),
        ("ntk-by-parts", ()),
        ("dynamic-ntk", ()),
        ("none", ()),
    ],
)
def test_what_this_tool_wrote(method, options, onnx_artefacts, checkpoints, yarnconv):
    """Every bucket of every method is what `plan` says, and of all layers."""
    rope = ("--method", "none") if method == "none" else ("--factor", "4", "--method", method)
    found, who, context = read(onnx_artefacts("llama", *rope, *options))
    plan = json.loads(yarnconv("plan", checkpoints("llama"), *rope, "--json")[1])
    wanted = [bucket for group in plan["groups"] for bucket in group["buckets"]]
    (source,) = found
    assert (who, source.layers, source.pairing, source.element) == ("yarnconv", (0, 1, 2), "half", "FLOAT")
    assert source.source == "cos_cache, sin_cache"
    assert source.notes == ()
    assert context == source.buckets[-1].reach
    assert len(source.buckets) == len(wanted)
    for table, bucket in zip(source.buckets, wanted, strict=True):
        assert_agrees(table, np.array(bucket["inv_freq"]), bucket["attention_factor"])


LONG = {"short_factor": [1 + i / 100 for i in range(32)], "long_factor": [1 + i / 10 for i in range(32)]}


def test_what_a_checkpoint_brings(yarnconv, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, **ROPES["llama3"]}
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", "llama", rope_parameters=rope, max_position_embeddings=1024
    )
    assert yarnconv("onnx", checkpoint, "-o", tmp_path / "out")[0] == 0
    ((source,), _, _) = read(tmp_path / "out")
    (table,) = source.buckets
    assert table.reach == 1024
    assert_agrees(table, *reference(transformers.AutoConfig.from_pretrained(checkpoint)))


def give_last_layer_its_own_tables(editor):
    """Those of all layers without the temperature."""
    gathers = {node.output[0]: node for node in editor.nodes("Gather") if node.input[0] in editor.tables}
    last = editor.nodes("RotaryEmbedding")[-1]
    for index in (1, 2):
        node = gathers[last.input[index]]
        values = np.array(editor.stored(node.input[0])) / np.float32(1.1386294)
        other = helper.make_node("Gather", [editor.constant(values), node.input[1]], [f"own_{index}"], axis=0)
        editor.graph.node.insert(list(editor.graph.node).index(node), other)
        last.input[index] = f"own_{index}"


def test_layers_that_rotate_by_tables_of_their_own(onnx_artefacts, tmp_path):
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "edited")
    give_last_layer_its_own_tables(editor)
    found, _, _ = read(editor.save())
    factors = {source.layers: source.buckets[0].observation.attention_factor for source in found}
    assert factors == {(0, 1): pytest.approx(1.1386294), (2,): pytest.approx(1.0)}


def test_a_row_that_is_damaged(onnx_artefacts, tmp_path):
    """The table is not named as if it were right; its other buckets are."""
    editor = Editor(onnx_artefacts("llama", *DYNAMIC), tmp_path / "edited")
    editor.stored("cos_cache")[256 + 17, 3] += np.float32(1e-3)
    ((source,), _, _) = read(editor.save())
    assert [table.reach for table in source.buckets] == [256, 17, 1024]
    assert [table.broken for table in source.buckets] == [
        None,
        "row 17 does not follow the rows before it (pair 3)",
        None,
    ]


# what onnxruntime-genai's builder wrote


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(config, precision) -> the builder's directory of a tiny model."""

    def get(config, precision, provider="cpu", **edits):
        root = tmp_path_factory.mktemp("builder")
        sharp_model(config).save_pretrained(root / "checkpoint")
        write_byte_level(root / "checkpoint", config.vocab_size)
        path = root / "checkpoint" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **edits}))
        return build(root / "checkpoint", root / "built", precision, provider)

    return get


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rope_type", "precision", "provider"),
    [("default", "fp16", "cuda"), ("llama3", "fp32", "cpu"), ("llama3", "fp16", "cuda")],
)
def test_what_genais_builder_wrote(rope_type, precision, provider, built):
    config = rope_config(rope_type, num_hidden_layers=2)
    (source,), who, context = read(built(config, precision, provider))
    assert (who, source.layers, source.pairing) == ("onnxruntime-genai", (0, 1), "half")
    assert source.element == {"fp32": "FLOAT", "fp16": "FLOAT16"}[precision]
    (table,) = source.buckets
    assert table.reach == context == 1024
    assert_agrees(table, *reference(config), rel=1e-6 if precision == "fp32" else 1e-4)


def test_genais_builder_drops_a_llamas_yarn(built):
    """Which is why what a config.json says is not what a model carries."""
    (source,), who, context = read(built(rope_config("yarn"), "int4"))
    assert (who, context, source.layers, source.pairing) == ("onnxruntime-genai", 1024, (0,), "half")
    (table,) = source.buckets
    assert table.reach == 1024
    assert_agrees(table, *reference(rope_config("default")))


def test_genais_two_caches_are_two_buckets(built):
    """A branch chooses between them; the builder's own form of LongRoPE."""
    factors = {
        "short_factor": [1 + i / 100 for i in range(32)],
        "long_factor": [1 + i / 10 for i in range(32)],
    }
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, **factors}
    config = transformers.AutoConfig.for_model(
        "phi3",
        vocab_size=512,
        hidden_size=256,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        original_max_position_embeddings=256,
        rope_parameters={**rope, "original_max_position_embeddings": 256},
    )
    spelled = {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 256}
    ((source,), _, _) = read(built(config, "fp32", **spelled))
    assert [table.reach for table in source.buckets] == [256, 1024]
    assert source.layers == (0,)
    config.standardize_rope_params()
    for table, length in zip(source.buckets, (256, 1024), strict=True):
        inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
        assert_agrees(table, inv_freq.numpy().astype(float), factor)


# what torch's exporters wrote


def exports():
    """Each method by each exporter; by default one of two by the slower."""
    for rope_type in ROPES:
        yield pytest.param(rope_type, False, id=f"torchscript-{rope_type}")
        marks = () if rope_type in {"yarn", "llama3"} else pytest.mark.slow
        yield pytest.param(rope_type, True, marks=marks, id=f"dynamo-{rope_type}")


@pytest.mark.parametrize(("rope_type", "dynamo"), list(exports()))
def test_what_torch_exported(rope_type, dynamo, tmp_path):
    """The frequencies are a constant, positions meet them at run time."""
    config = rope_config(rope_type)
    (source,), who, context = read(export(config, tmp_path / "out", dynamo=dynamo))
    assert (who, context) == ("torch.onnx", None)
    assert (source.layers, source.pairing, source.element, source.notes) == (None, "half", "FLOAT", ())
    (table,) = source.buckets
    assert table.reach is None
    assert_agrees(table, *reference(config))


SMALL = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def plain(theta, dimensions):
    return theta ** -(np.arange(0, dimensions, 2) / dimensions)


def test_layers_of_two_kinds_as_torch_exports_them(tmp_path):
    """Gemma 3's turn by two bases."""
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.AutoConfig.for_model("gemma3_text", **SMALL, head_dim=32, layer_types=kinds)
    found, _, _ = read(export(config, tmp_path / "out", dynamo=False))
    assert len(found) == 2
    # transformers computes them in the order of a set, which is another every time
    found = sorted(found, key=lambda source: source.buckets[0].observation.inv_freq[1])
    for source, theta in zip(found, (1e6, 1e4), strict=True):
        assert_agrees(source.buckets[0], plain(theta, 32), 1.0)


def test_neighbours_that_turn_together_as_torch_exports_them(tmp_path):
    """Cohere's angles stand twice beside each other: whatever lays them out, they are no halves."""
    config = transformers.AutoConfig.for_model("cohere", **SMALL)
    ((source,), _, _) = read(export(config, tmp_path / "out", dynamo=False))
    assert source.pairing is None
    assert_agrees(source.buckets[0], plain(config.rope_parameters["rope_theta"], 32), 1.0)


def test_tables_as_torch_exports_them(tmp_path):
    """GPT-J's are one tensor, which holds sines and cosines."""
    config = transformers.AutoConfig.for_model(
        "gptj", vocab_size=256, n_embd=128, n_layer=1, n_head=4, rotary_dim=16, n_positions=128
    )
    ((source,), _, _) = read(export(config, tmp_path / "out", dynamo=False))
    assert source.buckets[0].reach == 128
    assert_agrees(source.buckets[0], plain(1e4, 16), 1.0)


@pytest.mark.slow
def test_two_sets_of_frequencies_as_torch_exports_them(tmp_path):
    """Phi 3's LongRoPE: positions choose at run time."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    factors = {name: values[:16] for name, values in LONG.items()}
    config = transformers.AutoConfig.for_model(
        "phi3", **SMALL, original_max_position_embeddings=128, rope_parameters={**rope, **factors}
    )
    ((source,), _, _) = read(export(config, tmp_path / "out", dynamo=True))
    factor = np.sqrt(1 + np.log(4) / np.log(128))
    for table, name in zip(source.buckets, ("long_factor", "short_factor"), strict=True):
        assert_agrees(table, plain(1e4, 32) / np.array(factors[name]), factor)


def assert_rounded(source, name):
    """That it is said, and by how much it is off."""
    assert source.notes == (f"its frequencies were rounded to {name} before they were stored as FLOAT",)
    inv_freq, factor = reference(rope_config("yarn"))
    assert_agrees(source.buckets[0], inv_freq, factor)
    off = np.abs(source.buckets[0].observation.inv_freq - inv_freq) / inv_freq
    assert off.max() > 1e-4  # more than any float32 allows


def test_frequencies_that_were_rounded_before_they_were_exported(tmp_path):
    """A model that is moved to a 16-bit type before its export has frequencies of that type, though the
    graph stores them as float32."""
    out = export(rope_config("yarn"), tmp_path / "half", dynamo=False, dtype=torch.float16)
    ((source,), _, _) = read(out)
    assert_rounded(source, "FLOAT16")
    out = export_as_optimum(rope_config("yarn"), tmp_path / "brain", dtype=torch.bfloat16)
    ((source,), _, _) = read(out)
    assert_rounded(source, "BFLOAT16")


@pytest.mark.parametrize("rope_type", ROPES)
def test_what_optimum_exports(rope_type, tmp_path):
    config = rope_config(rope_type)
    (source,), who, context = read(export_as_optimum(config, tmp_path / "out"))
    assert (who, context) == ("optimum (torch.onnx)", 1024)
    assert (source.layers, source.pairing) == ((0,), "half")
    assert_agrees(source.buckets[0], *reference(config))


def test_of_a_graph_that_is_changed_the_change_is_read(tmp_path):
    """One frequency and the scale of cos and sin."""
    out = export_as_optimum(rope_config("yarn"), tmp_path / "out")
    model = onnx.load(out / "model.onnx")
    constants = {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    constants |= {tensor.name: tensor for tensor in model.graph.initializer}
    (inv_freq,) = [
        t for t in constants.values() if np.prod(t.dims) == 32 and t.data_type == TensorProto.FLOAT
    ]
    values = numpy_helper.to_array(inv_freq).copy()
    values.reshape(-1)[5] *= np.float32(1.00001)
    inv_freq.raw_data = values.tobytes()
    for made in model.graph.node:
        other = constants.get(made.input[-1]) if made.op_type == "Mul" else None
        if other is not None and other.data_type == TensorProto.FLOAT and not other.dims:
            other.raw_data = np.float32(1.25).tobytes()
    onnx.save(model, out / "model.onnx")
    ((source,), _, _) = read(out)
    wanted, _ = reference(rope_config("yarn"))
    observation = source.buckets[0].observation
    off = np.abs(observation.inv_freq / wanted - 1) > observation.uncertainty
    assert np.flatnonzero(off).tolist() == [5]
    assert observation.attention_factor == pytest.approx(1.25)
