"""Bad checkpoints of experts and of codes: each its own message, exit 2, nothing left on disk, no trace."""

import shutil

import pytest
import torch

from tests.support.models import edit_config
from tests.support.stored_forms import rewrite, to_fp8, to_mxfp4

EXPERT = "model.layers.1.mlp.experts.3."
LINEAR = "model.layers.1.self_attn.o_proj.weight"
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
FP8 = {"quant_method": "fp8", "fmt": "e4m3"}
CASES = {}


def case(family, expected):
    """Register an edit of a good checkpoint with a fragment of the message it must lead to. family: of codes
    where it has a form of them.
    """

    def register(edit):
        CASES[edit.__name__] = (family, edit, expected)
        return edit

    return register


def said(directory, value):
    edit_config(directory, quantization_config=value)


def to(name, value):
    return lambda tensors: {**tensors, name: value(tensors[name])}


def without(*names):
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


# -- experts ---------------------------------------------------------------------------------------


@case("qwen3_moe", "model.layers.1.mlp.experts.3.up_proj.weight is missing")
def a_missing_matrix(directory):
    rewrite(directory, without(f"{EXPERT}up_proj.weight"))


@case("qwen3_moe", "model.layers.1.mlp.experts.0.gate_proj.weight is there, and")
def a_missing_expert(directory):
    rewrite(directory, without(*(f"{EXPERT}{part}_proj.weight" for part in ("up", "gate", "down"))))


@case("qwen3_moe", "the tensor model.layers.1.mlp.experts.gate_up_proj is missing, or as")
def no_experts_at_all(directory):
    rewrite(directory, lambda t: {n: v for n, v in t.items() if "layers.1.mlp.experts." not in n})


@case("qwen3_moe", "model.layers.0.mlp.experts.8.down_proj.weight is left over")
def one_expert_too_many(directory):
    edit = {"model.layers.0.mlp.experts.8.down_proj.weight": torch.zeros(256, 128)}
    rewrite(directory, lambda t: {**t, **edit})


@case("qwen3_moe", "is F32 [156, 256], and model.layers.1.mlp.experts.0.gate_proj.weight F32 [128, 256]")
def gate_and_up_of_other_heights(directory):
    """As many rows in all."""

    def change(tensors):
        for part, rows in {"gate": 156, "up": 100}.items():
            tensors[f"{EXPERT}{part}_proj.weight"] = torch.zeros(rows, 256)

    rewrite(directory, change)


@case("qwen3_moe", "but config.json makes it [8, 256, 256]")
def every_expert_too_wide(directory):
    """As many rows, each of which is longer."""

    def change(tensors):
        for name, value in tensors.items():
            if "layers.1.mlp.experts." in name and "down" not in name:
                tensors[name] = torch.zeros(value.shape[0], 300)

    rewrite(directory, change)


@case("qwen3_moe", "is F16 [128, 256], and")
def one_expert_of_another_type(directory):
    rewrite(directory, to(f"{EXPERT}up_proj.weight", lambda value: value.half()))


@case("qwen3_moe", "gate_up_proj has shape [8, 128, 256]")
def fused_experts_without_their_ups(directory):
    def change(tensors):
        kept = {n: v for n, v in tensors.items() if "layers.0.mlp.experts." not in n}
        kept[f"{GATE_UP}"] = torch.zeros(8, 128, 256)
        kept[GATE_UP.replace("gate_up", "down")] = torch.zeros(8, 256, 128)
        return kept

    rewrite(directory, change)


@case("deepseek_v3", "num_nextn_predict_layers is -1")
def fewer_than_no_layers_behind(directory):
    edit_config(directory, num_nextn_predict_layers=-1)


@case("deepseek_v3", "is left over")
def layers_behind_that_the_config_does_not_know(directory):
    edit_config(directory, num_nextn_predict_layers=0)
    rewrite(directory, lambda t: {**t, "model.layers.2.eh_proj.weight": torch.zeros(2, 2)})


@case("qwen3_moe", "mlp_only_layers is no list of layers")
def dense_layers_that_are_none(directory):
    edit_config(directory, mlp_only_layers={"0": True})


@case("deepseek_v3", "num_key_value_heads is 2, and latent attention has as many as query heads, 4")
def grouped_heads_of_latent_attention(directory):
    edit_config(directory, num_key_value_heads=2)


# -- what config.json says of codes ----------------------------------------------------------------


@case("qwen3_moe", "quantised by 'awq'")
def awq(directory):
    said(directory, {"quant_method": "awq", "bits": 4})


@case("qwen3_moe", "quantised by 'compressed-tensors'")
def compressed_tensors(directory):
    said(directory, {"quant_method": "compressed-tensors", "config_groups": {}, "format": "pack-quantized"})


@case("qwen3_moe", "quantised by 'fp8' in blocks of None")
def fp8_without_blocks(directory):
    said(directory, FP8)


@case("qwen3_moe", "quantised by 'fp8' in blocks of [32, 32]")
def fp8_of_another_format(directory):
    said(directory, {**FP8, "fmt": "e5m2", "weight_block_size": [32, 32]})


@case("qwen3_moe", "quantised by None")
def quantised_by_nothing(directory):
    said(directory, {"bits": 8})


@case("qwen3_moe", "quantization_config is ['fp8'], not an object")
def quantisation_a_list(directory):
    said(directory, ["fp8"])


@case("qwen3_moe", "quantization_config is 8, not an object")
def quantisation_a_number(directory):
    said(directory, 8)


@case("qwen3_moe", "quantised by {'fp8': 1}")
def method_an_object(directory):
    said(directory, {"quant_method": {"fp8": 1}, "weight_block_size": [32, 32]})


@case("qwen3_moe", "in blocks of [1099511627776, 1099511627776]")
def huge_blocks(directory):
    said(directory, {**FP8, "weight_block_size": [2**40, 2**40]})


@case("qwen3_moe", "in blocks of [0, 32]")
def blocks_of_nothing(directory):
    said(directory, {**FP8, "weight_block_size": [0, 32]})


@case("qwen3_moe", "in blocks of [-32, 32]")
def blocks_below_nothing(directory):
    said(directory, {**FP8, "weight_block_size": [-32, 32]})


@case("qwen3_moe", "in blocks of [32.0, 32.0]")
def blocks_of_floats(directory):
    said(directory, {**FP8, "weight_block_size": [32.0, 32.0]})


@case("qwen3_moe", "in blocks of [True, True]")
def blocks_of_truth_values(directory):
    said(directory, {**FP8, "weight_block_size": [True, True]})


@case("qwen3_moe", "in blocks of [32]")
def blocks_of_one_dimension(directory):
    said(directory, {**FP8, "weight_block_size": [32]})


# -- FP8 -------------------------------------------------------------------------------------------


@case("fp8", "has dtype F8_E4M3")
def codes_that_the_config_does_not_know(directory):
    edit_config(directory, remove=["quantization_config"])


@case("fp8", f"{LINEAR}_scale_inv is missing")
def codes_without_factors(directory):
    rewrite(directory, without(f"{LINEAR}_scale_inv"))


@case("fp8", f"{LINEAR}_scale_inv is left over")
def factors_without_codes(directory):
    rewrite(directory, to(LINEAR, lambda value: value.float()))


@case("fp8", "_scale_inv has shape [8, 7], F32, and")
def factors_of_another_shape(directory):
    rewrite(directory, to(f"{LINEAR}_scale_inv", lambda value: value[:, :7].contiguous()))


@case("fp8", "_scale_inv has shape [64], F32, and")
def factors_in_a_row(directory):
    rewrite(directory, to(f"{LINEAR}_scale_inv", lambda value: value.reshape(-1)))


@case("fp8", "_scale_inv has shape [8, 8], F16, and")
def factors_of_another_type(directory):
    rewrite(directory, to(f"{LINEAR}_scale_inv", lambda value: value.half()))


@case("fp8", "and model.layers.0.mlp.experts.0.gate_proj.weight needs F32 or BF16 [2, 3]")
def other_blocks_than_the_factors(directory):
    said(directory, {**FP8, "weight_block_size": [64, 100]})
    # of the layers before, all as if there were no codes
    rewrite(
        directory,
        lambda t: {
            n: torch.zeros(v.shape) if "self_attn" in n and n.endswith("proj.weight") else v
            for n, v in t.items()
            if not ("self_attn" in n and n.endswith("_scale_inv"))
        },
    )


@case("fp8", "and FP8 weights are matrices")
def a_cube_of_codes(directory):
    def change(tensors):
        kept = {n: v for n, v in tensors.items() if "layers.0.mlp.experts." not in n}
        kept[GATE_UP] = torch.zeros(8, 256, 256).to(torch.float8_e4m3fn)
        kept[f"{GATE_UP}_scale_inv"] = torch.ones(8, 8, 8)
        kept[GATE_UP.replace("gate_up", "down")] = torch.zeros(8, 256, 128)
        return kept

    rewrite(directory, change)


@case("fp8", "has dtype F8_E5M2")
def codes_of_another_format(directory):
    rewrite(directory, to(LINEAR, lambda value: value.float().to(torch.float8_e5m2)))


# -- MXFP4 -----------------------------------------------------------------------------------------


@case("mxfp4", f"the tensor {GATE_UP} is missing")
def mxfp4_that_the_config_does_not_know(directory):
    edit_config(directory, remove=["quantization_config"])


@case("mxfp4", f"{GATE_UP}_blocks is there, and {GATE_UP}_scales is missing")
def blocks_without_scales(directory):
    rewrite(directory, without(f"{GATE_UP}_scales"))


@case("mxfp4", f"{GATE_UP}_scales is there, and {GATE_UP}_blocks is missing")
def scales_without_blocks(directory):
    rewrite(directory, without(f"{GATE_UP}_blocks"))


@case("mxfp4", "_scales has shape [4, 256, 7], U8, and")
def scales_of_another_shape(directory):
    rewrite(directory, to(f"{GATE_UP}_scales", lambda value: value[..., :7].contiguous()))


@case("mxfp4", "_scales has shape [4, 256, 8], F32, and")
def scales_of_floats(directory):
    rewrite(directory, to(f"{GATE_UP}_scales", lambda value: value.float()))


@case("mxfp4", "_blocks has shape [4, 256, 16, 8], U8, and MXFP4 has blocks of 16 bytes")
def blocks_of_eight_bytes(directory):
    rewrite(directory, to(f"{GATE_UP}_blocks", lambda value: value.reshape(4, 256, 16, 8)))


@case("mxfp4", "_blocks has shape [4, 256, 8, 16], I8")
def blocks_of_another_type(directory):
    rewrite(directory, to(f"{GATE_UP}_blocks", lambda value: value.view(torch.int8)))


@case("mxfp4", "has shape [4, 128, 256], but config.json makes it [4, 256, 256]")
def blocks_of_half_the_rows(directory):
    def change(tensors):
        for end in ("blocks", "scales"):
            tensors[f"{GATE_UP}_{end}"] = tensors[f"{GATE_UP}_{end}"][:, :128].contiguous()

    rewrite(directory, change)


@pytest.fixture(scope="module")
def good(checkpoints, tmp_path_factory):
    """A family, or a form of codes -> a good checkpoint, made once."""
    made = {}

    def get(name):
        if name not in ("fp8", "mxfp4"):
            return checkpoints(name)
        if name not in made:
            family = {"fp8": "qwen3_moe", "mxfp4": "gpt_oss"}[name]
            made[name] = shutil.copytree(checkpoints(family), tmp_path_factory.mktemp("codes") / "model")
            (to_fp8 if name == "fp8" else to_mxfp4)(made[name])
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_hostile(name, good, yarnconv, tmp_path):
    form, edit, expected = CASES[name]
    directory = shutil.copytree(good(form), tmp_path / "in" / "model")
    edit(directory)
    out = tmp_path / "out"
    out.mkdir()
    code, stdout, stderr = yarnconv("gguf", directory, "--factor", "4", "-o", out)
    assert code == 2, stderr
    assert expected in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert stdout == ""
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("form", ["qwen3_moe", "fp8", "mxfp4"])
def test_the_good_ones_are_converted(form, good, yarnconv, tmp_path):
    code, _, stderr = yarnconv("gguf", good(form), "--factor", "4", "-o", tmp_path / "out.gguf")
    assert code == 0, stderr
