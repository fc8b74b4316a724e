"""From numbers to causes: what is said, what was found, and the code that names the difference."""

from dataclasses import replace

import numpy as np
import pytest

from yarnconv.rope.identify import Clues, identify
from yarnconv.rope.mistakes import near_misses
from yarnconv.rope.observation import Observation
from yarnconv.rope.scaling import DynamicYarn, Linear, Llama3, NtkAware, Unscaled, Yarn
from yarnconv.rope.tables import buckets, yarn_attention_factor
from yarnconv.targets.inspection.carried_rope import CarriedBucket, CarriedGroup, Claims
from yarnconv.targets.inspection.findings import CODES, Finding, at_least, without_repeats
from yarnconv.targets.inspection.rope_findings import (
    claim_findings,
    context_findings,
    group_findings,
    main_group,
)

SMALL = {"theta": 1e4, "rotary_dim": 64, "original_context": 256, "factor": 4.0}
SAID = Yarn(**SMALL)
FULL = yarn_attention_factor(SAID)
MSCALES = Yarn(**SMALL, mscale=1.0, mscale_all_dim=0.5)
LATENT = Yarn(**SMALL, mscale=1.0, mscale_all_dim=1.0, softmax_mscale=True)
ODD_BETAS = Yarn(**SMALL, beta_fast=16.0, beta_slow=2.0)


def group(*scalings, said=SAID, reach=None, element=None, broken=None, **numbers):
    """What an artefact of these scalings would be found to carry."""
    clues = Clues(scalings=(said, *near_misses(said, (1024,))), contexts=(256, 1024), bases=(1e4,))
    found = []
    for scaling in scalings:
        tables = buckets(scaling)[-1]
        observation = Observation(
            inv_freq=tables.inv_freq,
            uncertainty=np.full(len(tables.inv_freq), 2e-6),
            **{
                "attention_factor": tables.attention_factor,
                "softmax_multiplier": tables.softmax_multiplier,
                **numbers,
            },
        )
        fit = identify(observation, clues)
        found.append(CarriedBucket(observation=observation, fit=fit, reach=reach, broken=broken))
    return CarriedGroup(layers="all layers", source="tables", buckets=tuple(found), element=element)


CAUSES = {
    "plain-rope": (SAID, Unscaled(theta=1e4, rotary_dim=64), {}),
    "linear": (SAID, Linear(**SMALL), {}),
    "ntk-aware": (SAID, NtkAware(**SMALL), {}),
    "by-parts": (Linear(**SMALL), SAID, {}),
    "other-method": (
        SAID,
        Llama3(**SMALL, low_freq_factor=1.0, high_freq_factor=4.0),
        {},
    ),
    "wrong-theta": (SAID, Yarn(**(SMALL | {"theta": 5e5})), {}),
    "wrong-factor": (SAID, Yarn(**(SMALL | {"factor": 3.9})), {}),
    "wrong-original-context": (SAID, Yarn(**(SMALL | {"original_context": 512})), {}),
    "original-from-extended": (SAID, Yarn(**(SMALL | {"original_context": 1024})), {}),
    "betas-ignored": (ODD_BETAS, SAID, {}),
    "truncate-ignored": (replace(SAID, truncate=False), SAID, {}),
    "temperature-missing": (SAID, SAID, {"attention_factor": 1.0}),
    "temperature-twice": (SAID, SAID, {"attention_factor": FULL**2}),
    "temperature-relogged": (SAID, SAID, {"attention_factor": 1 + 0.1 * FULL * float(np.log(4.0))}),
    "attention-factor-dropped": (replace(SAID, attention_factor=1.3), SAID, {}),
    "attention-factor-wrong": (SAID, SAID, {"attention_factor": 1.05}),
    "softmax-factor-missing": (LATENT, LATENT, {"softmax_multiplier": 1.0}),
    "wrong-rotary-dim": (SAID, Yarn(**(SMALL | {"rotary_dim": 32})), {}),
}


@pytest.mark.parametrize("code", CAUSES)
def test_a_cause_has_its_name(code):
    """And no other."""
    said, found, numbers = CAUSES[code]
    claim = Claims(source="the config", scaling=said, original_context=256, context=1024)
    findings = list(claim_findings(claim, group(found, said=said, **numbers)))
    assert [finding.code for finding in findings] == [code]
    assert code in CODES
    assert "the config" in findings[0].message


@pytest.mark.parametrize(
    "scaling", [SAID, MSCALES, LATENT, ODD_BETAS, Linear(**SMALL), NtkAware(**SMALL)], ids=repr
)
def test_what_is_as_it_is_said_has_no_findings(scaling):
    claim = Claims(source="the config", scaling=scaling, context=1024)
    assert list(claim_findings(claim, group(scaling, said=scaling))) == []


def test_an_unequal_pair_that_was_dropped():
    claim = Claims(source="the config", scaling=MSCALES, context=1024)
    (finding,) = claim_findings(claim, group(SAID, said=MSCALES))
    assert finding.code == "attention-factor-dropped"


def test_a_dynamic_scaling_that_was_frozen():
    dynamic = DynamicYarn(**SMALL)
    claim = Claims(source="the config", scaling=dynamic, context=1024)
    for found, code in ((Unscaled(theta=1e4, rotary_dim=64), "plain-rope"), (SAID, "dynamic-frozen")):
        (finding,) = claim_findings(claim, group(found, said=dynamic))
        assert finding.code == code
    plain, double = Unscaled(theta=1e4, rotary_dim=64), Yarn(**(SMALL | {"factor": 2.0}))
    assert list(claim_findings(claim, group(plain, double, SAID, said=dynamic))) == []
    (finding,) = claim_findings(claim, group(plain, SAID, SAID, said=dynamic))
    assert finding.code == "wrong-factor"
    (finding,) = claim_findings(claim, group(plain, SAID, said=dynamic))
    assert finding.code == "other-method"


def test_what_is_odd_without_any_claim():
    def codes(carried, contexts=()):
        return [(f.code, f.severity) for f in group_findings(carried, contexts, judge_temperature=True)]

    assert codes(group(SAID)) == []
    assert codes(group(SAID, attention_factor=1.0)) == [("temperature-missing", "warning")]
    assert codes(group(SAID, attention_factor=FULL**2)) == [("temperature-twice", "error")]
    plain = Unscaled(theta=1e4, rotary_dim=64)
    assert codes(group(plain)) == []
    assert codes(group(plain, attention_factor=1.2)) == [("attention-factor-wrong", "warning")]
    assert codes(group(SAID, broken="row 17 follows nothing")) == [("table-damaged", "error")]
    assert codes(group(SAID, reach=512), (1024,)) == [("table-short", "error")]
    assert codes(group(SAID, reach=1024), (1024,)) == []
    assert codes(group(SAID, element="FLOAT16")) == [("table-rounded", "warning")]
    assert codes(group(SAID, element="FLOAT")) == []


def test_a_context_that_does_not_fit():
    def codes(original, context, **options):
        fit = group(SAID).buckets[0].fit
        found = context_findings(fit, original, context, "context_length", **options)
        return [(f.code, f.severity) for f in found]

    assert codes(256, 1024) == []
    assert codes(256, 1027) == []  # within a position's fraction, times the factor
    assert codes(256, 1028) == [("context-length", "error")]
    assert codes(256, 512) == [("context-length", "error")]
    assert codes(256, 256) == [("static-inside", "warning")]
    assert codes(256, 128) == [("static-inside", "warning")]
    assert codes(256, 128, dynamic=True) == [("context-length", "error")]


def test_findings_are_counted_by_their_severity_and_said_once():
    one = Finding(code="linear", severity="warning", message="a", remedy="b")
    two = replace(one, message="c")
    assert without_repeats([one, two]) == (one,)
    assert at_least((one,), "warning")
    assert not at_least((one,), "error")
    assert not at_least((), "note")


def test_a_softmax_scale_that_nothing_shows_is_not_missing():
    """As in an ONNX graph or an engine, of which only tables were read."""
    claim = Claims(source="the config", scaling=LATENT, context=1024)
    assert list(claim_findings(claim, group(LATENT, said=LATENT, softmax_multiplier=None))) == []


def test_llama_3s_with_another_factor():
    said = Llama3(**SMALL, low_freq_factor=1.0, high_freq_factor=4.0)
    claim = Claims(source="the config", scaling=said, context=1024)
    (finding,) = claim_findings(claim, group(replace(said, factor=8.0), said=said))
    assert finding.code == "wrong-factor"


def test_the_layers_that_are_as_it_is_said_are_the_extended_ones():
    plain, scaled = group(Unscaled(theta=1e4, rotary_dim=64)), group(SAID)
    claim = Claims(source="the config", scaling=SAID, context=1024)
    assert main_group((plain, scaled), (claim,)) is scaled
    assert main_group((plain, scaled), ()) is plain
