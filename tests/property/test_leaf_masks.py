"""Tables of leaves that are ruled out end where a walk down each tree ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.model_bundle.compiled import CompiledFormError
from tallystick.model_bundle.compiled.leaf_masks import LEAVES_MAX, ROWS_FEW, LeafMasks, Tree

FEATURES = 3
THRESHOLDS = [-math.inf, -1.0, -0.0, 0.0, 5e-324, 0.5, 1.0, math.nextafter(1.0, 2.0), math.inf]
VALUES = st.sampled_from([*THRESHOLDS, math.nan, -5e-324]) | st.floats()

leaf = st.floats(-1, 1)
split = st.tuples(st.integers(0, FEATURES - 1), st.sampled_from(THRESHOLDS), st.booleans())
shape = st.recursive(leaf, lambda below: st.tuples(split, below, below), max_leaves=20)


def tree_of(node):
    """Nodes in the order in which they are met."""
    nodes = []

    def add(part):
        here = len(nodes)
        nodes.append(None)
        if isinstance(part, float):
            nodes[here] = (-1, -1, -1, 0.0, False, part)
        else:
            (feature, threshold, null_left), left, right = part
            nodes[here] = (add(left), add(right), feature, threshold, null_left, 0.0)
        return here

    add(node)
    return Tree(*(np.array(column) for column in zip(*nodes, strict=True)))


def walk(node, row):
    while not isinstance(node, float):
        (feature, threshold, null_left), left, right = node
        value = row[feature]
        goes_left = null_left if math.isnan(value) else value <= threshold
        node = left if goes_left else right
    return node


@settings(deadline=None)
@given(
    st.lists(shape, min_size=1, max_size=6),
    st.lists(st.lists(VALUES, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=20),
    st.floats(-1, 1),
    st.booleans(),
)
def test_tables_end_where_a_walk_ends(shapes, rows, base, averages):
    given_trees = [tree_of(node) for node in shapes]
    if all(isinstance(node, float) for node in shapes):
        with pytest.raises(CompiledFormError, match="no tree has a split"):
            LeafMasks.of(given_trees, features=FEATURES, base=base, averages=averages)
        return
    made = LeafMasks.of(given_trees, features=FEATURES, base=base, averages=averages)
    masks = LeafMasks.from_bytes(made.to_bytes())
    matrix = np.array(rows)
    expected = []
    for row in rows:
        total = base
        for node in shapes:
            total += walk(node, row)
        expected.append(total / len(shapes) if averages else 1 / (1 + math.exp(-total)))
    found = masks.predict(matrix)
    if averages:
        assert found.tolist() == expected
    assert found == pytest.approx(expected, rel=1e-14)
    alone = [float(masks.predict(matrix[row : row + 1])[0]) for row in range(len(matrix))]
    assert alone == found.tolist()
    many = masks.predict(np.repeat(matrix, ROWS_FEW + 1, axis=0))[:: ROWS_FEW + 1]
    assert many.tolist() == found.tolist()


def comb(leaves, threshold=float):
    """A tree that hangs to the right, one leaf after the other: row x ends in leaf ceil(x)."""
    node = float(leaves - 1)
    for number in reversed(range(leaves - 1)):
        node = ((0, threshold(number), True), float(number), node)
    return node


@pytest.mark.parametrize("leaves", [2, 7, 8, 9, 16, 17, 32, 33, 63, LEAVES_MAX])
def test_every_leaf_has_its_bit(leaves):
    masks = LeafMasks.of([tree_of(comb(leaves))], features=1, base=0.0, averages=True)
    matrix = np.arange(-1.0, leaves + 1)[:, np.newaxis]
    expected = np.clip(matrix[:, 0], 0, leaves - 1)
    assert np.array_equal(masks.predict(matrix), expected)
    assert masks.predict(np.array([[np.nan]])).tolist() == [0.0]


def test_what_has_no_room_in_bits_is_refused():
    with pytest.raises(CompiledFormError, match="more than 64 leaves"):
        LeafMasks.of([tree_of(comb(65))], features=1, base=0.0, averages=True)
    nan = tree_of(comb(3, threshold=lambda _: math.nan))
    with pytest.raises(CompiledFormError, match="NaN"):
        LeafMasks.of([nan], features=1, base=0.0, averages=True)
    wide = [tree_of((((f, 0.0, True)), comb(40), 1.0)) for f in range(40)]
    with pytest.raises(CompiledFormError, match="too large"):
        LeafMasks.of(wide, features=40, base=0.0, averages=True)


def test_another_format_is_refused():
    made = LeafMasks.of([tree_of(comb(3))], features=1, base=0.0, averages=True)
    made._arrays["format"] = np.array(2)
    with pytest.raises(CompiledFormError, match="format 2, not 1"):
        LeafMasks.from_bytes(made.to_bytes())
