"""The float64 reference tables, which were computed without any ML library (fixtures/golden)."""

import json

import numpy as np
import pytest

from tests.conftest import FIXTURES
from yarnconv.rope.scaling import Linear, NtkAware, Unscaled, Yarn
from yarnconv.rope.tables import buckets, correction_range, count_regimes, ntk_base

CASES = json.loads((FIXTURES / "golden" / "rope_tables.json").read_text())["cases"]
TOLERANCE = 1e-12  # relative; measured: 5e-15


def yarn(case, **changes):
    return Yarn(
        **{
            "theta": case["rope_theta"],
            "rotary_dim": case["head_dim"],
            "original_context": case["original_max_position_embeddings"],
            "factor": case["factor"],
            "beta_fast": case["beta_fast"],
            "beta_slow": case["beta_slow"],
            "truncate": case["truncate"],
            "temperature_coefficient": case["temperature_coefficient"],
            "mscale": case["mscale"],
            "mscale_all_dim": case["mscale_all_dim"],
            "softmax_mscale": case["mla"],
            **changes,
        }
    )


def close(found, wanted):
    np.testing.assert_allclose(found, np.array(wanted, dtype=np.float64), rtol=TOLERANCE, atol=0)


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]


def test_yarn_frequencies(case):
    close(buckets(yarn(case))[0].inv_freq, case["inv_freq"])
    close(buckets(yarn(case, truncate=True))[0].inv_freq, case["inv_freq_truncate"])
    close(buckets(yarn(case, truncate=False))[0].inv_freq, case["inv_freq_no_truncate"])


def test_yarn_temperature(case):
    tables = buckets(yarn(case))[0]
    close(tables.attention_factor, case["attention_factor_on_cos_sin"])
    close(tables.softmax_multiplier, case["softmax_scale_multiplier_mscale_all_dim_sq"])


def test_correction_range_and_regimes(case):
    close(correction_range(yarn(case)), [case["low"], case["high"]])
    assert count_regimes(yarn(case)) == {
        "extrapolated": case["n_extrapolated_unchanged"],
        "blended": case["n_ramp"],
        "interpolated": case["n_interpolated_full"],
    }


def test_plain_linear_ntk(case):
    shared = {"theta": case["rope_theta"], "rotary_dim": case["head_dim"]}
    extended = {
        **shared,
        "original_context": case["original_max_position_embeddings"],
        "factor": case["factor"],
    }
    close(buckets(Unscaled(**shared))[0].inv_freq, case["inv_freq_plain"])
    close(buckets(Linear(**extended))[0].inv_freq, case["inv_freq_linear_pi"])
    close(ntk_base(NtkAware(**extended)), case["ntk_aware_base"])
    close(buckets(NtkAware(**extended))[0].inv_freq, case["inv_freq_ntk_aware"])
