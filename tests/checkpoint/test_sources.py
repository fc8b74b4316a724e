"""Values that stand in parts, in another order or in blocks of codes: any rows and columns, against NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from yarnconv.checkpoint.codes import Fp8Tensor, Mxfp4Tensor
from yarnconv.checkpoint.floats import to_float32
from yarnconv.checkpoint.safetensors_file import open_safetensors
from yarnconv.checkpoint.sources import (
    ColumnTensor,
    PickedTensor,
    StackedTensor,
    TurnedTensor,
    files_of,
    leaves,
    load,
    row_count,
    take,
)

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    """Tensors of one file, by name, and their values."""
    random = torch.Generator().manual_seed(5)

    def codes(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)

    def factors(*shape):
        return torch.rand(shape, generator=random) + 0.5

    values = {
        "a": torch.randn(7, 5, generator=random),
        "b": torch.randn(4, 5, generator=random),
        "c": torch.randn(1, 5, generator=random),
        "cube": torch.randn(3, 6, 4, generator=random),
        "vector": torch.randn(9, generator=random),
        "half": torch.randn(6, 8, generator=random).to(torch.bfloat16),
        "fp8": codes(11, 13).view(torch.float8_e4m3fn),
        "factors": factors(3, 4),
        "short factors": factors(3, 4).to(torch.bfloat16),
        "blocks": codes(2, 6, 3, 16),
        "scales": torch.randint(100, 150, (2, 6, 3), dtype=torch.uint8, generator=random),
    }
    path = Path(tmp_path_factory.mktemp("sources")) / "model.safetensors"
    save_file(values, path)
    file, tensors = open_safetensors(path)
    yield tensors, values
    file.close()


def fp8(tensors, factors="factors"):
    return Fp8Tensor(codes=tensors["fp8"], factors=tensors[factors], block_size=(4, 4))


def mxfp4(tensors):
    return Mxfp4Tensor(name="experts", codes=tensors["blocks"], exponents=tensors["scales"])


def dequantised(codes, factors):
    """[11, 13] in blocks of 4 x 4, the last of which are smaller; by torch."""
    wide = factors.float().repeat_interleave(4, 0).repeat_interleave(4, 1)
    return (codes.float() * wide[: codes.shape[0], : codes.shape[1]]).numpy()


def unpacked(blocks, scales):
    """[2, 6, 96]: the first of two values in a byte's low half; by plain arithmetic."""
    found = np.empty((*scales.shape, 32), np.float32)
    for place in np.ndindex(*scales.shape):
        factor = 2.0 ** (int(scales[place]) - 127)
        for index, byte in enumerate(blocks[place].tolist()):
            found[(*place, 2 * index)] = E2M1[byte & 15] * factor
            found[(*place, 2 * index + 1)] = E2M1[byte >> 4] * factor
    return found.reshape(2, 6, 96)


def cases(refs):
    """name -> (a source, what it should hold as a matrix)."""
    tensors, values = refs
    plain = {name: value.float().numpy() for name, value in values.items() if value.dtype != torch.uint8}
    parts = tuple(tensors[name] for name in "abc")
    stacked = StackedTensor(name="s", shape=(12, 5), parts=parts)
    whole = np.concatenate([plain[name] for name in "abc"])
    ranges = (range(1, 12, 3), range(2), range(11, 12))
    picked = PickedTensor(shape=(7, 5), of=stacked, ranges=ranges)
    turned = plain["cube"].swapaxes(1, 2).reshape(-1, 6)
    exact = unpacked(values["blocks"].numpy(), values["scales"].numpy()).reshape(12, 96)
    rows = PickedTensor(shape=(3, 2, 5), of=stacked, ranges=(range(2, 5), range(8, 11)))
    return {
        "stacked": (stacked, whole),
        "picked": (picked, np.concatenate([whole[r.start : r.stop : r.step] for r in ranges])),
        "turned": (TurnedTensor(of=tensors["cube"]), turned),
        "turned of picked": (
            TurnedTensor(of=rows),
            np.concatenate([whole[2:5], whole[8:11]]).reshape(3, 2, 5).swapaxes(1, 2).reshape(-1, 2),
        ),
        "column": (ColumnTensor(of=tensors["vector"]), plain["vector"].reshape(-1, 1)),
        "column of a matrix": (ColumnTensor(of=tensors["a"]), plain["a"].reshape(-1, 1)),
        "bfloat16": (StackedTensor(name="t", shape=(12, 8), parts=(tensors["half"],) * 2), None),
        "fp8": (fp8(tensors), dequantised(values["fp8"], values["factors"])),
        "fp8 by bfloat16": (
            fp8(tensors, "short factors"),
            dequantised(values["fp8"], values["short factors"]),
        ),
        "turned fp8": (
            TurnedTensor(of=PickedTensor(shape=(2, 3, 13), of=fp8(tensors), ranges=(range(2, 8),))),
            dequantised(values["fp8"], values["factors"])[2:8]
            .reshape(2, 3, 13)
            .swapaxes(1, 2)
            .reshape(-1, 3),
        ),
        "mxfp4": (mxfp4(tensors), exact),
        "every second row of mxfp4": (
            PickedTensor(shape=(2, 3, 96), of=mxfp4(tensors), ranges=(range(1, 12, 2),)),
            exact[1::2],
        ),
    }


NAMES = (
    *("stacked", "picked", "turned", "turned of picked", "column", "column of a matrix", "bfloat16", "fp8"),
    *("fp8 by bfloat16", "turned fp8", "mxfp4", "every second row of mxfp4"),
)


def expected_of(refs, name):
    source, wanted = cases(refs)[name]
    if wanted is None:
        half = refs[1]["half"].float().numpy()
        wanted = np.concatenate([half, half])
    return source, wanted


def slices(size):
    return st.tuples(st.integers(0, size - 1), st.integers(1, size), st.integers(1, 4)).map(
        lambda found: slice(found[0], min(size, found[0] + found[1]), found[2])
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_block(name, refs, data):
    source, wanted = expected_of(refs, name)
    rows = data.draw(slices(len(wanted)))
    columns = data.draw(slices(wanted.shape[1]))
    found = to_float32(source.block(rows, columns), source.dtype)
    np.testing.assert_array_equal(found, wanted[rows, columns])  # NaN codes among them


@pytest.mark.parametrize("name", NAMES)
def test_all_of_it_and_single_rows(name, refs):
    source, wanted = expected_of(refs, name)
    assert row_count(source.shape) == len(wanted)
    assert source.shape[-1] == wanted.shape[1]
    whole = to_float32(load(source), source.dtype)
    np.testing.assert_array_equal(whole.reshape(wanted.shape), wanted)
    some = np.array([0, len(wanted) - 1, 0], dtype=np.intp)
    np.testing.assert_array_equal(to_float32(take(source, some), source.dtype), wanted[some])
    assert len(files_of([source, source])) == 1


@pytest.mark.parametrize("name", ["stacked", "picked", "every second row of mxfp4"])
def test_leaves_are_what_the_rows_are_of(name, refs):
    source, wanted = expected_of(refs, name)
    found = list(leaves(source, range(1, len(wanted), 2)))
    blocks = [leaf.block(slice(own.start, own.stop, own.step)) for leaf, own in found]
    kind = source.dtype
    np.testing.assert_array_equal(np.concatenate([to_float32(b, kind) for b in blocks]), wanted[1::2])
    assert not any(isinstance(leaf, StackedTensor | PickedTensor) for leaf, _ in found)


def test_every_code_of_e4m3_is_torchs(tmp_path):
    codes = torch.arange(256, dtype=torch.uint8).reshape(16, 16).view(torch.float8_e4m3fn)
    save_file({"codes": codes, "factors": torch.ones(1, 1)}, tmp_path / "model.safetensors")
    file, tensors = open_safetensors(tmp_path / "model.safetensors")
    source = Fp8Tensor(codes=tensors["codes"], factors=tensors["factors"], block_size=(16, 16))
    np.testing.assert_array_equal(load(source), codes.float().numpy())
    file.close()


def test_mxfp4_is_transformers_own(refs):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors, values = refs
    theirs = convert_moe_packed_tensors(values["blocks"], values["scales"], dtype=torch.float32)
    ours = to_float32(load(mxfp4(tensors)), "BF16")
    np.testing.assert_array_equal(ours, theirs.swapaxes(1, 2).numpy())


def test_mxfp4_at_the_ends_of_its_exponents(tmp_path):
    """The least are float32's subnormal numbers, the largest are no numbers; nothing warns."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    values = {
        "blocks": torch.arange(256, dtype=torch.uint8).reshape(1, 2, 8, 16),
        "scales": torch.tensor([0, 1, 2, 3, 252, 253, 254, 255], dtype=torch.uint8)
        .expand(1, 2, 8)
        .contiguous(),
    }
    save_file(values, tmp_path / "model.safetensors")
    file, tensors = open_safetensors(tmp_path / "model.safetensors")
    source = Mxfp4Tensor(name="e", codes=tensors["blocks"], exponents=tensors["scales"])
    theirs = convert_moe_packed_tensors(values["blocks"], values["scales"], dtype=torch.float32)
    np.testing.assert_array_equal(to_float32(load(source), "BF16"), theirs.swapaxes(1, 2).numpy())
    file.close()
