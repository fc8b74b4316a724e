"""Checkpoints whose weights are fused or codes: the same GGUF as of their plain float form, by the real
runtime and by the check too.
"""

import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.parity.test_experts_gguf import tokens, wanted_of
from tests.parity.test_llama_cpp import F32_TOLERANCE
from tests.support.gguf_editing import load
from tests.support.llama_converter import LlamaConverter
from tests.support.llama_runtime import dequantised_copy
from tests.support.models import ORIGINAL_CONTEXT, make_checkpoint, relative_error
from tests.support.stored_forms import WEIGHTS, as_in_memory, in_floats, rewrite, to_fp8, to_mxfp4
from tests.targets.gguf.test_converter_equality import facts
from yarnconv.targets.gguf.file_format import TensorType

FUSED = ("qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
YARN = ("--factor", "4")


@pytest.fixture
def convert(yarnconv, tmp_path):
    """(directory, options) -> the GGUF, each in its place."""

    def run(directory, *options):
        path = tmp_path / f"{len(list(tmp_path.glob('*.gguf')))}.gguf"
        code, _, stderr = yarnconv("gguf", directory, *options, "-o", path)
        assert code == 0, stderr
        return path

    return run


@pytest.fixture
def copied(checkpoints, tmp_path):
    """(family, name of a folder) -> a copy of a tiny checkpoint, under the same name in each."""

    def get(family, where, **changes):
        return shutil.copytree(checkpoints(family, **changes), tmp_path / where / "model")

    return get


def same_tensors(one, other):
    ours, theirs = facts(one)[1], facts(other)[1]
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


@pytest.mark.parametrize("family", FUSED)
def test_fused_and_one_by_one(family, copied, convert):
    """As transformers 5 has experts in memory, and as it writes them: gpt-oss's are fused in both."""
    stored, fused = copied(family, "stored"), copied(family, "fused")
    as_in_memory(fused)
    assert convert(stored, *YARN).read_bytes() == convert(fused, *YARN).read_bytes()


def test_mixtral_as_published_and_as_in_memory(copied, convert):
    """Under other names, which come in another order in the file."""
    published, fused = copied("mixtral", "published"), copied("mixtral", "fused")
    as_in_memory(fused)
    assert any("block_sparse_moe.experts.3.w1" in name for name in load_file(published / WEIGHTS))
    assert any("mlp.experts.gate_up_proj" in name for name in load_file(fused / WEIGHTS))
    one, other = convert(published, *YARN), convert(fused, *YARN)
    assert same_tensors(one, other) == set()
    assert facts(one)[0] == facts(other)[0]


# -- FP8 in blocks ---------------------------------------------------------------------------------

# [32, 32] leaves no edge; of [48, 80] the last blocks are smaller in both directions
FP8 = {
    "even": ("deepseek_v3", (32, 32), torch.float32),
    "ragged": ("deepseek_v3", (48, 80), torch.float32),
    "factors in bfloat16, as Qwen's": ("qwen3_moe", (128, 128), torch.bfloat16),
    "a shared expert": ("qwen2_moe", (40, 56), torch.float32),
    "half of each head rotates": ("glm4_moe", (48, 80), torch.float32),
    "Mixtral's names": ("mixtral", (48, 80), torch.bfloat16),
    "a dense model": ("qwen3", (48, 80), torch.float32),
}


@pytest.mark.parametrize("case", FP8)
def test_fp8_is_what_torch_makes_of_it(case, copied, convert):
    """Dequantised in float32 by torch, and then rounded once where a type asks for that."""
    family, block, factor_dtype = FP8[case]
    directory = copied(family, "codes")
    exact = to_fp8(directory, block, factor_dtype)
    plain = shutil.copytree(directory, directory.parent.parent / "floats" / "model")
    in_floats(plain, exact)
    assert len(exact) > 10
    for outtype in ("f32", "bf16", "q8_0"):
        ours, wanted = (convert(d, *YARN, "--outtype", outtype) for d in (directory, plain))
        assert same_tensors(ours, wanted) == set()
    # by default what was codes becomes bfloat16, in which such models are computed, and the rest stays
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(convert(directory)).tensors}
    assert types["token_embd.weight"] == TensorType.F32
    assert types["blk.1.attn_output.weight"] == TensorType.BF16


def test_fp8_through_the_runtime_and_the_check(copied, convert, llama_cpp, check):
    directory = copied("deepseek_v3", "codes")
    exact = to_fp8(directory, (48, 80))
    plain = shutil.copytree(directory, directory.parent.parent / "floats" / "model")
    in_floats(plain, exact)
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
    path = convert(directory, *YARN, "--outtype", "f32")
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    # measured 6.9e-6
    assert relative_error(found, wanted_of(plain, rope)) <= F32_TOLERANCE
    code, report, stderr = check(convert(directory, *YARN), directory, *YARN)
    assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr
    # one factor wrong is 4 % of a weight's blocks
    file = load(path)
    file.rows["blk.1.ffn_down_exps.weight"].reshape(-1).view(np.float32)[:32] *= 1.5
    code, report, _ = check(file.write(path.with_name("wrong.gguf")), directory, *YARN)
    assert (code, report["verdicts"]["weights"]) == (1, "fails")


# -- MXFP4 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """(in MXFP4, the same in floats, the values by transformers' names)."""
    root = tmp_path_factory.mktemp("mxfp4")
    directory = make_checkpoint(root / "codes" / "model", "gpt_oss")
    exact = to_mxfp4(directory)
    plain = shutil.copytree(directory, root / "floats" / "model")
    in_floats(plain, exact)
    return directory, plain, exact


@pytest.mark.parametrize("outtype", ["f32", "bf16", "f16"])
def test_mxfp4_dequantised(outtype, gpt_oss, convert):
    directory, plain, _ = gpt_oss
    ours, wanted = (convert(d, *YARN, "--outtype", outtype) for d in (directory, plain))
    assert same_tensors(ours, wanted) == set()


@pytest.mark.parametrize("outtype", ["auto", "q8_0"])
def test_mxfp4_stays_mxfp4(outtype, gpt_oss, convert, llama_cpp, check, tmp_path):
    """Repacked, not rounded: the gguf package reads transformers' values; llama.cpp computes with them."""
    directory, plain, exact = gpt_oss
    path = convert(directory, *YARN, "--outtype", outtype)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts."
        gate_up = exact[f"{name}gate_up_proj"].swapaxes(1, 2).numpy()
        wanted = {"gate": gate_up[:, ::2], "up": gate_up[:, 1::2]}
        wanted["down"] = exact[f"{name}down_proj"].swapaxes(1, 2).numpy()
        for part, values in wanted.items():
            stored = tensors[f"blk.{layer}.ffn_{part}_exps.weight"]
            assert stored.tensor_type == TensorType.MXFP4
            np.testing.assert_array_equal(gguf.quants.dequantize(stored.data, stored.tensor_type), values)
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
    if outtype == "auto":
        copy = dequantised_copy(path, tmp_path / "copy.gguf")
        found = llama_cpp.run(copy, tokens(), first=ORIGINAL_CONTEXT)
        # measured 1.1e-5
        assert relative_error(found, wanted_of(plain, rope)) <= F32_TOLERANCE
    code, report, stderr = check(path, directory, *YARN)
    assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr


def test_check_of_mxfp4_is_exact(gpt_oss, convert, check, tmp_path):
    """One code in 200 thousand, of its least step: rounding would explain it, and copying does not."""
    directory, _, _ = gpt_oss
    file = load(convert(directory, *YARN))
    codes = file.rows["blk.0.ffn_up_exps.weight"]
    codes[5, 1] ^= 1
    code, report, _ = check(file.write(tmp_path / "wrong.gguf"), directory, *YARN, "--weights", "all")
    assert code == 1
    assert report["verdicts"] == {"structure": "holds", "weights": "fails", "metadata": "holds"}
    assert "ffn_up_exps.weight 1 values are not the checkpoint's, the first in row 5" in str(report)


def test_their_converter_has_the_same_codes(gpt_oss, convert, llama_cpp_source, tmp_path):
    directory, _, _ = gpt_oss
    with LlamaConverter(llama_cpp_source) as converter:
        theirs = converter.convert(directory, tmp_path / "theirs.gguf")
    wanted, ours = facts(theirs)[1], facts(convert(directory))[1]
    codes = {name for name, (kind, _, _) in wanted.items() if kind == TensorType.MXFP4}
    assert len(codes) == 6
    assert {name for name in codes if ours[name] != wanted[name]} == set()


# -- layers behind the last ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_layers_that_predict_several_tokens_are_skipped(family, copied, convert, yarnconv, tmp_path):
    plain, extra = copied(family, "plain"), copied(family, "extra")

    def with_layer(number):
        def change(tensors):
            own = {n: v for n, v in tensors.items() if n.startswith("model.layers.1.")}
            behind = {n.replace("layers.1.", f"layers.{number}."): v.clone() for n, v in own.items()}
            return {**tensors, **behind, f"model.layers.{number}.eh_proj.weight": torch.zeros(2, 2)}

        return change

    rewrite(extra, with_layer(2))
    one, other = convert(plain), convert(extra)
    assert same_tensors(one, other) == set()
    keys, more = facts(one)[0], facts(other)[0]
    assert {key for key in keys | more if keys.get(key) != more.get(key)} == {"yarnconv.plan"}
    assert "tensors of layers that predict further tokens" in more["yarnconv.plan"][1]
    rewrite(extra, with_layer(3))  # one more than num_nextn_predict_layers says
    code, _, stderr = yarnconv("gguf", extra, "-o", tmp_path / "not.gguf")
    assert code == 2
    assert "is left over" in " ".join(stderr.split())
