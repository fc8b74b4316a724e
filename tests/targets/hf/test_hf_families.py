"""What `yarnconv hf` writes of families whose RoPE is more than one scaling for all layers."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from tests.support.models import edit_config, relative_error, sample_tokens
from yarnconv.model.family import families

FAMILIES = (
    *("gemma2", "gemma3_text", "glm4", "granite", "granitemoehybrid", "ministral3", "olmo2", "olmo3"),
    *("phi3", "smollm3"),
)
OPTIONS = {
    "none": ("--method", "none"),
    "linear": ("--method", "linear", "--factor", "4"),
    "ntk": ("--method", "ntk", "--factor", "4"),
    "yarn": ("--factor", "4", "--no-truncate"),
}
BY_TYPE = ("gemma3_text", "olmo3")
TOLERANCE = 1e-6  # both sides are the same code: 0 was measured of all of them
TOKENS = sample_tokens(512, 400)


def scaled(method, own):
    """The RoPE parameters of the extended layers, in transformers' own words. own: of those that are not."""
    theta, context = own["rope_theta"], own.get("original_max_position_embeddings", 256)
    kept = {k: own[k] for k in ("partial_rotary_factor", "llama_4_scaling_beta") if k in own}
    kept |= {"original_max_position_embeddings": context} if "llama_4_scaling_beta" in own else {}
    if method == "none":
        return {"rope_type": "default", "rope_theta": theta, **kept}
    if method == "linear":
        return {"rope_type": "linear", "factor": 4.0, "rope_theta": theta, **kept}
    if method == "ntk":
        dim = 64 * own.get("partial_rotary_factor", 1.0)
        return {"rope_type": "default", "rope_theta": theta * 4.0 ** (dim / (dim - 2)), **kept}
    ramp = {"factor": 4.0, "original_max_position_embeddings": context, "truncate": False}
    pair = {key: own[key] for key in ("mscale", "mscale_all_dim") if key in own}
    return {"rope_type": "yarn", "rope_theta": theta, **ramp, **pair, **kept}


def wanted_logits(directory, method):
    """Of the model that the checkpoint's config and the method describe, with its RoPE set on the object."""
    config = transformers.AutoConfig.from_pretrained(directory)
    own = config.rope_parameters
    if "full_attention" in own:
        parameters = {**own, "full_attention": scaled(method, own["full_attention"])}
        if parameters["full_attention"].pop("truncate", None) is False:
            parameters["truncate"] = False  # beside the types is where it is read
    else:
        parameters = scaled(method, own)
    config.rope_parameters = parameters
    config.max_position_embeddings = 1024
    return logits(directory, config=config)


def logits(directory, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", **options
    )
    with torch.no_grad():
        return model.eval()(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()


def expressible(family, method):
    types = families()[family].structure.rope_types
    return types is None or method in {"none", "ntk"}


CASES = [(f, m) for f in FAMILIES for m in OPTIONS if expressible(f, m)]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_transformers_computes_the_plan(extend, checkpoints, family, method):
    source = checkpoints(family)
    out, _ = extend(source, *OPTIONS[method])
    found, wanted = logits(out), wanted_logits(source, method)
    assert relative_error(found, wanted) < TOLERANCE
    if method != "none":  # and the scaling is one that shows
        assert relative_error(found, wanted_logits(source, "none")) > 1e-3


@pytest.mark.parametrize("family", BY_TYPE)
def test_each_layer_type_has_its_own(extend, checkpoints, family):
    out, report = extend(checkpoints(family), "--factor", "4", "--no-truncate")
    config = json.loads((out / "config.json").read_text())
    local = 10000.0 if family == "gemma3_text" else 500000.0
    nested = config["rope_parameters"]
    assert nested.keys() == {"full_attention", "sliding_attention", "truncate"}
    assert nested["sliding_attention"] == {"rope_type": "default", "rope_theta": local}
    assert nested["full_attention"]["rope_type"] == "yarn"
    assert "truncate" not in nested["full_attention"]
    assert nested["truncate"] is config["rope_scaling"]["truncate"] is False
    assert config["rope_theta"] == nested["full_attention"]["rope_theta"]
    assert config.get("rope_local_base_freq", local) == local
    assert ("rope_local_base_freq" in config) == (family == "gemma3_text")
    assert [group["layer_type"] for group in report["plan"]["groups"]] == [*nested][:2]
    # what transformers made of both spellings is what each of them says
    loaded = transformers.AutoConfig.from_pretrained(out).rope_parameters
    assert loaded["sliding_attention"]["rope_type"] == "default"
    for key, value in nested["full_attention"].items():
        assert loaded["full_attention"][key] == value


@pytest.mark.parametrize("family", BY_TYPE)
def test_the_older_spelling_alone_says_it_too(extend, checkpoints, family):
    """As it stands in the checkpoints that transformers 4 was made for."""
    out, _ = extend(checkpoints(family), "--factor", "4")
    alone = shutil.copytree(out, out.with_name("older"))
    edit_config(alone, remove=["rope_parameters"])
    np.testing.assert_array_equal(logits(alone), logits(out))
    newer = shutil.copytree(out, out.with_name("newer"))
    edit_config(newer, remove=["rope_scaling", "rope_theta", "rope_local_base_freq"])
    np.testing.assert_array_equal(logits(newer), logits(out))


def test_an_older_checkpoint_is_extended_alike(extend, copied):
    """Gemma 3 as it is published: no rope_parameters, and the windows by an interval."""
    old = {"rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None}
    source = copied("gemma3_text", remove=["rope_parameters", "layer_types"], **old, sliding_window_pattern=6)
    out, _ = extend(source, "--factor", "4")
    config = json.loads((out / "config.json").read_text())
    assert "layer_types" not in config
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1000000, 10000)
    assert relative_error(logits(out), wanted_logits(source, "none")) > 1e-3
    edited = shutil.copytree(source, source.with_name("by-hand"))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    edit_config(edited, rope_scaling=yarn, max_position_embeddings=1024)
    np.testing.assert_array_equal(logits(out), logits(edited))


def test_what_the_older_spelling_cannot_say_is_said(extend, checkpoints):
    """OLMo 3 has one rope_theta: NTK's base of the layers that see everything is none of the others."""
    out, report = extend(checkpoints("olmo3"), "--method", "ntk", "--factor", "4")
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"] is None
    assert "rope_theta" not in config
    assert any("Only rope_parameters" in note for note in report["notes"])
    _, report = extend(checkpoints("gemma3_text"), "--method", "ntk", "--factor", "4", name="gemma")
    assert not any("Only rope_parameters" in note for note in report["notes"])


@pytest.mark.parametrize("family", [*BY_TYPE, "ministral3", "smollm3"])
def test_extending_twice_is_extending_once(extend, checkpoints, family):
    first, _ = extend(checkpoints(family), "--factor", "4", "--no-truncate", name="first")
    once, _ = extend(checkpoints(family), "--factor", "8", "--no-truncate", name="once")
    twice, report = extend(first, "--factor", "8", name="twice")
    assert not any("has no effect" in warning for warning in report["plan"]["warnings"])
    assert json.loads((twice / "config.json").read_text()) == json.loads((once / "config.json").read_text())
    plain, _ = extend(first, "--method", "none", name="plain")
    found, wanted = logits(plain), wanted_logits(checkpoints(family), "none")
    np.testing.assert_array_equal(found, wanted)


def test_what_a_checkpoint_says_of_its_fine_tuning_survives(extend, copied):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "finetuned": True}
    rope = {"full_attention": {**yarn, "rope_theta": 500000.0}, "sliding_attention": {"rope_type": "default"}}
    out, report = extend(copied("olmo3", rope_parameters=rope))
    assert report["plan"]["finetuned"] is True
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"]["finetuned"] is True
    assert config["rope_parameters"]["full_attention"]["finetuned"] is True


@pytest.mark.parametrize("method", OPTIONS)
def test_queries_keep_growing_by_their_own_context(extend, checkpoints, method):
    out, _ = extend(checkpoints("ministral3"), *OPTIONS[method])
    config = json.loads((out / "config.json").read_text())
    for spelling in ("rope_scaling", "rope_parameters"):
        assert config[spelling]["llama_4_scaling_beta"] == 0.1
        assert config[spelling]["original_max_position_embeddings"] == 256
        alone = shutil.copytree(out, out.with_name(f"without-{spelling}"))
        edit_config(alone, remove=[spelling])
        np.testing.assert_array_equal(logits(alone), logits(out))


def test_queries_and_scaling_count_from_one_context(checkpoints, yarnconv, tmp_path):
    arguments = ("hf", checkpoints("ministral3"), "--factor", "4", "--original-context", "128")
    code, _, stderr = yarnconv(*arguments, "-o", tmp_path / "out")
    assert code == 3
    assert "one key for both" in " ".join(stderr.split())
    assert list(tmp_path.iterdir()) == []
    linear = (*arguments, "--method", "linear", "-o", tmp_path / "out")  # has no such key
    assert yarnconv(*linear)[0] == 0


@pytest.mark.parametrize("method", ["linear", "dynamic-ntk", "yarn", "ntk-by-parts"])
def test_types_that_a_class_does_not_take(checkpoints, yarnconv, tmp_path, method):
    """Phi-3's raises on load, or takes YaRN for longrope: what is refused fails there, by its own hand."""
    out = tmp_path / "out"
    code, _, stderr = yarnconv("hf", checkpoints("phi3"), "--method", method, "--factor", "4", "-o", out)
    said = " ".join(stderr.split())
    assert code == 3
    assert "--method ntk" in said
    assert "longrope" in said
    assert not out.exists()
    rope = {"rope_type": "yarn" if "by" in method else method.removesuffix("-ntk"), "factor": 4.0}
    with pytest.raises(Exception, match="longrope"):  # of the Hub's kind or KeyError
        transformers.Phi3Config(rope_parameters={**rope, "rope_theta": 10000.0})


def test_phi3_keeps_its_own_longrope(extend, copied):
    rope = {
        "type": "longrope",
        "short_factor": [1.0 + 0.01 * i for i in range(32)],
        "long_factor": [1.0 + 0.5 * i for i in range(32)],
    }
    source = copied("phi3", remove=["rope_parameters"], rope_scaling=rope, max_position_embeddings=1024)
    out, _ = extend(source)
    np.testing.assert_allclose(logits(out), logits(source), rtol=0, atol=1e-5)
    alone = shutil.copytree(out, out.with_name("alone"))
    edit_config(alone, remove=["rope_scaling"])
    np.testing.assert_array_equal(logits(alone), logits(out))


def test_part_of_a_head_rotates(extend, checkpoints):
    out, report = extend(checkpoints("glm4"), "--factor", "4")
    config = json.loads((out / "config.json").read_text())
    assert (report["plan"]["rotary_dim"], report["plan"]["head_dim"]) == (32, 64)
    for place in (config, config["rope_scaling"], config["rope_parameters"]):
        assert place["partial_rotary_factor"] == 0.5


def test_types_that_a_class_does_not_tell_apart(copied, yarnconv, tmp_path):
    """Qwen3 reads one scaling for all layers."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    nested = {"full_attention": plain, "sliding_attention": {**plain, "rope_theta": 500.0}}
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    windows = {"use_sliding_window": True, "sliding_window": 64}
    for rope in (nested, {**nested, "sliding_attention": None}):
        source = copied("qwen3", rope_parameters=rope, layer_types=types, **windows)
        code, _, stderr = yarnconv("hf", source, "--factor", "4", "-o", tmp_path / "out")
        assert code == 3, stderr
        assert "kinds of them" in " ".join(stderr.split())
        shutil.rmtree(source)


def test_one_truncate_for_all_types(copied, yarnconv, tmp_path):
    """transformers reads one beside the types: YaRN on both cannot differ in it."""
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}
    both = {kind: {**yarn, "rope_theta": 500000.0} for kind in ("full_attention", "sliding_attention")}
    source = copied("olmo3", rope_parameters=both)
    code, _, stderr = yarnconv("hf", source, "--factor", "4", "--no-truncate", "-o", tmp_path / "out")
    assert code == 3
    assert "one truncate" in " ".join(stderr.split())
    assert yarnconv("hf", source, "--factor", "4", "-o", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_scaling"] is None  # which would be of one kind only
    assert config["rope_parameters"]["sliding_attention"]["factor"] == 2.0
    assert config["rope_parameters"]["full_attention"]["factor"] == 4.0
