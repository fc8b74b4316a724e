"""What RoPE a model carries is read from its bytes, whoever made it."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.support.genai_builder import build
from tests.support.models import make_checkpoint, sharp_model
from tests.support.onnx_faults import Editor
from tests.support.tokenizer_files import write_byte_level
from tests.support.torch_export import ROPES, export, export_as_optimum, reference, rope_config
from yarnconv.errors import BadInput
from yarnconv.targets.onnx.extension import RUNTIME_OPERATORS
from yarnconv.targets.onnx.observed import claimed_context, maker, observe
from yarnconv.targets.onnx.reader import open_onnx

YARN = ("--factor", "4", "--method", "yarn")
DYNAMIC = ("--factor", "4", "--method", "dynamic-yarn")


def read(path):
    """(the sources, who made it, the context that is claimed)."""
    with open_onnx(path, unknown=RUNTIME_OPERATORS) as model:
        return observe(model), maker(model), claimed_context(model)


def assert_agrees(table, inv_freq, factor, *, rel=1e-6):
    """Within what the reader itself says that it may be off."""
    assert table.broken is None
    off = np.abs(table.observation.inv_freq - inv_freq) / inv_freq
    assert (off <= table.observation.uncertainty).all()
    assert table.observation.attention_factor == pytest.approx(factor, rel=rel)


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


# graphs of any maker

OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("f", 1)]


def save(directory, nodes, initialisers, outputs=("out",), inputs=(), functions=(), **model):
    """A model whose positions are [1, tokens]."""
    directory.mkdir(exist_ok=True)
    values = [helper.make_tensor_value_info("positions", TensorProto.INT64, [1, "tokens"])]
    values += [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("abcd")) for name in inputs]
    graph = helper.make_graph(
        nodes,
        "g",
        values,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("efgh")) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in initialisers.items()],
    )
    proto = helper.make_model(graph, opset_imports=OPSETS, functions=list(functions), ir_version=11, **model)
    onnx.save(proto, directory / "model.onnx")
    return directory


FREQUENCIES = (10000.0 ** -(np.arange(16) / 16)).astype(np.float32)


def tables(rows=300, factor=1.0, frequencies=FREQUENCIES, dtype=np.float32):
    angles = np.arange(rows)[:, None] * frequencies.astype(float)
    return (np.cos(angles) * factor).astype(dtype), (np.sin(angles) * factor).astype(dtype)


def computed(*, inv_freq=("inv_freq",), first=(), cos="cos", sin="sin", more=()):
    """Nodes from positions to what is scaled of cos and sin."""
    return [
        helper.make_node("Cast", ["positions"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float", "two"], ["column"]),
        *first,
        helper.make_node("Mul", ["column", *inv_freq], ["angles"]),
        helper.make_node("Cos", ["angles"], ["cos"]),
        helper.make_node("Sin", ["angles"], ["sin"]),
        *more,
        helper.make_node("Mul", [cos, "keys"], ["turned"]),
        helper.make_node("Mul", [sin, "keys"], ["turned too"]),
        helper.make_node("Add", ["turned", "turned too"], ["out"]),
    ]


def scalar(value):
    return np.float32(value)


TWO = {"two": np.array([2])}


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], **attributes)


COMPUTED = {
    "positions divided by the factor": (
        {"inv_freq": ("inv_freq",), "first": [node("Div", ["column", "four"], "divided")]},
        {"four": scalar(4), "inv_freq": FREQUENCIES},
        FREQUENCIES / 4,
        1.0,
    ),
    "frequencies made of theta in the graph": (
        {
            "inv_freq": ("made",),
            "first": [
                node("Range", ["zero", "d", "step"], "even"),
                node("Div", ["even", "d"], "exponents"),
                node("Pow", ["theta", "exponents"], "powers"),
                node("Reciprocal", ["powers"], "made"),
            ],
        },
        {"zero": scalar(0), "d": scalar(32), "step": scalar(2), "theta": scalar(10000)},
        FREQUENCIES,
        1.0,
    ),
    "scaled by division after a cast": (
        {
            "cos": "c2",
            "sin": "s2",
            "more": [
                node("Div", ["cos", "half"], "c1"),
                node("Cast", ["c1"], "c2", to=TensorProto.FLOAT),
                node("Identity", ["sin"], "s1"),
                node("Div", ["s1", "half"], "s2"),
            ],
        },
        {"half": scalar(0.8), "inv_freq": FREQUENCIES},
        FREQUENCIES,
        1.25,
    ),
    "a frequency for each dimension": (
        {},
        {"inv_freq": np.concatenate([FREQUENCIES, FREQUENCIES])},
        FREQUENCIES,
        1.0,
    ),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_angles_that_are_computed(case, tmp_path):
    parts, constants, wanted, factor = COMPUTED[case]
    nodes = computed(**parts)
    if "divided" in {output for n in nodes for output in n.output}:
        next(n for n in nodes if n.output[0] == "angles").input[0] = "divided"
    ((source,), who, _) = read(save(tmp_path / "m", nodes, {**TWO, **constants}, inputs=["keys"]))
    assert who == "unknown"
    assert source.notes == ()
    assert_agrees(source.buckets[0], wanted.astype(float), factor)


def test_a_branch_chooses_between_frequencies(tmp_path):
    constants = {**TWO, "short": FREQUENCIES, "long": FREQUENCIES / 8, "limit": np.int64(256)}
    choice = [
        node("ReduceMax", ["positions"], "last", keepdims=0),
        node("Greater", ["last", "limit"], "far"),
        node("Where", ["far", "long", "short"], "chosen"),
    ]
    nodes = computed(inv_freq=("chosen",), first=choice)
    ((source,), _, _) = read(save(tmp_path / "m", nodes, constants, inputs=["keys"]))
    assert len(source.buckets) == 2
    for table, divisor in zip(source.buckets, (8, 1), strict=True):
        assert_agrees(table, FREQUENCIES.astype(float) / divisor, 1.0)


def test_inside_of_a_function(tmp_path):
    """As exporters of torch 2.5 wrote modules."""
    body = computed()
    rotate = helper.make_function(
        "f", "Rotate", ["positions", "inv_freq", "keys", "two"], ["out"], body, [helper.make_opsetid("", 23)]
    )
    call = helper.make_node("Rotate", ["positions", "stored", "keys", "two"], ["out"], domain="f")
    constants = {**TWO, "stored": FREQUENCIES}
    ((source,), _, _) = read(save(tmp_path / "m", [call], constants, inputs=["keys"], functions=[rotate]))
    assert source.source == "stored"
    assert_agrees(source.buckets[0], FREQUENCIES.astype(float), 1.0)


def test_what_is_not_understood_is_said(tmp_path):
    """Never left out: a client would take the model for one without RoPE."""
    squares = [node("Mul", ["inv_freq", "column"], "once"), node("Mul", ["once", "once"], "twice")]
    nodes = computed(first=squares)
    next(n for n in nodes if n.output[0] == "angles").input[:] = ["twice", "inv_freq"]
    ((source,), _, _) = read(save(tmp_path / "m", nodes, {**TWO, "inv_freq": FREQUENCIES}, inputs=["keys"]))
    assert source.buckets == ()
    assert "in a way that is not read" in source.notes[0]
    rotary = [helper.make_node("RotaryEmbedding", ["keys", "cos", "sin", "positions"], ["out"])]
    ((source,), _, _) = read(save(tmp_path / "m", rotary, {}, inputs=["keys", "cos", "sin"]))
    assert source.buckets == ()
    assert source.notes == ("RotaryEmbedding takes cos and sin from cos, sin, which is not read",)


def test_scales_and_types_that_disagree_are_said(tmp_path):
    more = [node("Mul", ["cos", "scale"], "scaled")]
    constants = {**TWO, "inv_freq": FREQUENCIES, "scale": scalar(1.2)}
    nodes = computed(cos="scaled", more=more)
    nodes[0].attribute[0].i = TensorProto.FLOAT16
    ((source,), _, _) = read(save(tmp_path / "m", nodes, constants, inputs=["keys"]))
    assert source.notes == (
        "cos and sin are not all scaled alike: by 1, 1.2",
        "its angles are rounded to FLOAT16, so that positions far away turn wrongly",
    )


LAYOUTS = {
    "rows for each pair": (lambda t: t, None),
    "both halves": (lambda t: np.concatenate([t, t], axis=-1), "half"),
    "each value twice": (lambda t: np.repeat(t, 2, axis=-1), "interleaved"),
    "with dimensions of one": (lambda t: np.concatenate([t, t], axis=-1)[None, None], "half"),
    "one dimension between": (lambda t: t[:, None], None),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_that_no_known_operator_takes(layout, dtype, tmp_path):
    """Known by what they hold, whatever they are called; beside them tensors that are nearly tables."""
    arrange, pairing = LAYOUTS[layout]
    cos, sin = (arrange(table) for table in tables(factor=1.125, dtype=dtype))
    nearly = {"ones": np.ones_like(cos), "zeros": np.zeros_like(cos), "noise": np.roll(cos, 7, axis=-1)}
    names = ["a", "b", *nearly]
    nodes = [node("Gather", [name, "positions"], f"rows {name}", axis=0) for name in names]
    nodes.append(node("Sum", [f"rows {name}" for name in names], "out"))
    ((source,), _, _) = read(save(tmp_path / "m", nodes, {"b": cos, "a": sin, **nearly}))
    assert (source.source, source.pairing, source.layers) == ("b, a", pairing, None)
    (table,) = source.buckets
    assert table.reach == 300
    # the factor of 16-bit values is a median of theirs
    assert_agrees(table, FREQUENCIES.astype(float), 1.125, rel=1e-6 if dtype != np.float16 else 1e-4)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_rotary_embedding_says_which_dimensions_turn_together(domain, interleaved, tmp_path):
    cos, sin = tables()
    order = ["keys", "cos", "sin", "positions"] if not domain else ["keys", "positions", "cos", "sin"]
    nodes = [
        helper.make_node("RotaryEmbedding", order, ["present.4.key"], domain=domain, interleaved=interleaved)
    ]
    out = save(tmp_path / "m", nodes, {"cos": cos, "sin": sin}, outputs=["present.4.key"], inputs=["keys"])
    ((source,), _, _) = read(out)
    assert (source.pairing, source.layers) == ("interleaved" if interleaved else "half", (4,))


def test_equal_tables_of_several_layers_are_one_source(tmp_path):
    nodes, constants = [], {}
    for layer in range(3):
        constants |= dict(zip((f"cos {layer}", f"sin {layer}"), tables(), strict=True))
        inputs = ["keys", f"cos {layer}", f"sin {layer}", "positions"]
        nodes.append(helper.make_node("RotaryEmbedding", inputs, [f"present.{layer}.key"]))
    outputs = [f"present.{layer}.key" for layer in range(3)]
    ((source,), _, _) = read(save(tmp_path / "m", nodes, constants, outputs=outputs, inputs=["keys"]))
    assert source.layers == (0, 1, 2)
    assert source.source == "cos 0, sin 0, cos 1, sin 1 and 2 more"


HOSTILE = {
    "one row": (tables(rows=1), "are no tables of one form"),
    "no rows": ((np.zeros((0, 16), np.float32),) * 2, "are no tables of one form"),
    "another form": ((tables()[0], tables()[1][:, :8]), "are no tables of one form"),
    "no number": ((np.full((300, 16), np.nan, np.float32),) * 2, "row 0 is not position 0"),
    "endless starts": ((np.ones((300, 16), np.float32), np.zeros((300, 16), np.float32)), "more than 64"),
    "sines for cosines": (tables()[::-1], "row 0 is not position 0"),
    "infinite": (
        (tables()[0], np.where(np.arange(300)[:, None] == 9, np.inf, tables()[1])),
        "row 9 does not",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_tables_that_are_none(case, tmp_path):
    (cos, sin), why = HOSTILE[case]
    nodes = [helper.make_node("RotaryEmbedding", ["keys", "cos", "sin", "positions"], ["out"])]
    constants = {"cos": cos.astype(np.float32), "sin": sin.astype(np.float32)}
    ((source,), _, _) = read(save(tmp_path / "m", nodes, constants, inputs=["keys"]))
    assert [why in str(table.broken) for table in source.buckets] == [True]


def function(name, *called):
    nodes = [helper.make_node(other, ["x"], [f"y{n}"], domain="f") for n, other in enumerate(called)]
    nodes.append(node("Identity", ["y0" if called else "x"], "y"))
    return helper.make_function("f", name, ["x"], ["y"], nodes, OPSETS)


@pytest.mark.parametrize(
    "functions",
    [
        [function("F0", "F0")],
        [function("F0", "F1"), function("F1", "F0")],
        [
            function("F0", "F1", "F1"),
            *(function(f"F{n}", *[f"F{n + 1}"] * 2) for n in range(1, 40)),
            function("F40"),
        ],
    ],
    ids=["itself", "each other", "twice as often each time"],
)
def test_functions_that_call_without_end_are_refused(functions, tmp_path):
    call = helper.make_node("F0", ["positions"], ["out"], domain="f")
    with pytest.raises(BadInput):
        read(save(tmp_path / "m", [call], {}, functions=functions))


def test_a_graph_that_doubles_what_is_traced_is_read_in_no_time(tmp_path):
    """Of each value once: a chain of 100 concatenations with itself has 2^100 ways back."""
    ways = [node("Concat", ["column", "column"], "way 0", axis=-1)]
    ways += [node("Concat", [f"way {n}"] * 2, f"way {n + 1}", axis=-1) for n in range(100)]
    nodes = computed(first=ways)
    next(n for n in nodes if n.output[0] == "angles").input[0] = "way 100"
    ((source,), _, _) = read(save(tmp_path / "m", nodes, {**TWO, "inv_freq": FREQUENCIES}, inputs=["keys"]))
    assert_agrees(source.buckets[0], FREQUENCIES.astype(float), 1.0)


def test_what_is_claimed_beside_a_model(tmp_path):
    """genai_config.json before config.json, whose text model may stand inside."""
    nodes = [node("Cast", ["positions"], "out", to=TensorProto.FLOAT)]
    out = save(tmp_path / "m", nodes, {})
    assert read(out) == ((), "unknown", None)
    for config, context in (
        ({"max_position_embeddings": "many"}, None),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({"max_position_embeddings": 2048}, 2048),
    ):
        (out / "config.json").write_text(json.dumps(config))
        assert read(out)[2] == context
    (out / "genai_config.json").write_text(json.dumps({"model": {"context_length": 4096}}))
    assert read(out)[2] == 4096
    shutil.copy(out / "config.json", out / "genai_config.json")
    with pytest.raises(BadInput, match="context_length"):
        read(out)
