"""Which cases of a product run by default: all of them would take hours."""

import itertools
from collections import Counter

import pytest


def fewest(cases, facets, goals):
    """Of these the fewest that a greedy choice finds in which every goal of any is reached.

    facets: case -> values, of which those that were chosen least go first where goals do not decide.
    goals: case -> what it reaches.
    """
    missing, used, chosen = set().union(*map(goals, cases)), Counter(), []
    while missing:
        best = max(cases, key=lambda case: (len(goals(case) & missing), -sum(used[f] for f in facets(case))))
        chosen.append(best)
        missing -= goals(best)
        used.update(facets(best))
    return chosen


def product(*axes, meet):
    """Every combination of the axes' values for `parametrize`, the most of them slow.

    meet: groups of axes, by their places. Of each group every combination occurs by default, as all values
    of every axis do.
    """
    cases = list(itertools.product(*(range(len(axis)) for axis in axes)))
    groups = [*meet, *((place,) for place in range(len(axes)))]
    default = fewest(
        cases,
        facets=lambda case: set(enumerate(case)),
        goals=lambda case: {(group, *(case[place] for place in group)) for group in groups},
    )
    values = [list(axis) for axis in axes]
    for case in cases:
        marks = () if case in default else pytest.mark.slow
        yield pytest.param(*(of[place] for of, place in zip(values, case, strict=True)), marks=marks)


def slow(*values):
    """Of one axis those that do not run by default."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
