"""Piecewise-linear grids: equation 3 one value at a time, codes, and what holding the edges keeps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.ops.breakpoints import one_shot, optimal_edges
from qexp.ops.piecewise import PiecewiseGrid
from qexp.ops.uniform import make_grid

FORMS = [("paper", False), ("authors", False), ("paper", True), ("authors", True)]


def equation_3(r: float, bits: int, edges: list[float]) -> float:
    """Return one value of one or more pieces, in double precision and straight from the paper's words."""
    magnitude = min(abs(r), edges[-1])
    for low, high in pairwise(edges):
        if magnitude <= high:
            step = (high - low) / (2 ** (bits - 1) - 1)
            return math.copysign(low + step * round((magnitude - low) / step), r)
    raise AssertionError


def authors(r: float, bits: int, p: float, m: float, *, overlap: bool) -> float:
    """Return one value as the authors' code computes it, by its steps and integer limits."""
    if abs(r) < p or overlap:
        step = 2 * (p if abs(r) < p else m) / (2**bits - 1)
        return step * max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(r / step)))
    step = (m - p) / (2 ** (bits - 1) - 1)
    return math.copysign(p + step * round((abs(r) - p) / step), r)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("edges", [[0.0, 0.7, 2.5], [0.0, 0.4, 1.1, 2.5], [0.0, 0.3, 0.8, 1.4, 2.5]])
def test_equation_3(bits, edges):
    x = torch.linspace(-2.5, 2.5, 997)
    y = PiecewiseGrid(torch.tensor(edges), bits).round(x)
    expected = [equation_3(r, bits, edges) for r in x.tolist()]
    assert y.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_authors_code(bits, overlap):
    x = 5 * torch.rand(997, generator=torch.Generator().manual_seed(0)) - 2.5  # no ties
    y = PiecewiseGrid(torch.tensor([0.0, 0.7, 2.5]), bits, "authors", overlap=overlap).round(x)
    expected = [authors(r, bits, 0.7, 2.5, overlap=overlap) for r in x.tolist()]
    assert y.tolist() == pytest.approx(expected, abs=1e-6)


def test_levels_of_equation_3_at_4_bits():
    edges = torch.tensor([0.0, 0.7, 2.5])
    levels = PiecewiseGrid(edges, 4).codes(torch.zeros(1)).codebook
    assert len(levels) == 2**5 and (levels.diff() >= 0).all()
    positive = [0.1 * k for k in range(8)] + [0.7 + 1.8 / 7 * k for k in range(8)]
    assert sorted(levels.abs().tolist()[16:]) == pytest.approx(positive, abs=1e-6)


@pytest.mark.parametrize(("variant", "overlap"), FORMS)
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_codes_decode_to_the_values_channel_by_channel(variant, overlap, bits):
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    m = x.abs().amax((1, 2), keepdim=True)
    grid = PiecewiseGrid(torch.stack([0 * m, 0.3 * m, m]), bits, variant, overlap=overlap)
    codes = grid.codes(x)
    assert torch.equal(codes.decode(), grid.round(x))
    assert codes.levels <= 2 ** (bits + 1) and (codes.codebook.diff(dim=0) >= 0).all()


@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40),
    st.lists(st.floats(0.0009765625, 1, width=32), min_size=2, max_size=4),
    st.integers(2, 8),
    st.sampled_from(["paper", "authors"]),
)
def test_with_the_edges_held_it_changes_nothing_twice(values, shares, bits, variant):
    x = torch.tensor(values)
    edges = torch.cat([torch.zeros(1), torch.tensor(shares).cumsum(0)])
    grid = PiecewiseGrid(edges, bits, variant)
    once = grid.round(x)
    assert torch.equal(grid.round(once), once)
    assert torch.equal(grid.codes(x).decode(), once)
    assert (once.abs() <= edges[-1] * (1 + 1e-6)).all()
    assert (once * x >= 0).all(), "no value changes its sign"


def test_the_middle_of_the_range_is_uniform():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    halves = PiecewiseGrid(torch.tensor([0.0, 1.0, 2.0]), 3).round(x)
    step = 1 / 3
    assert halves.tolist() == pytest.approx((torch.round(x / step) * step).tolist(), abs=1e-6)


def test_what_is_never_negative_has_the_signs_bit_for_itself():
    grid = PiecewiseGrid(torch.tensor([0.0, 0.5, 2.0]), 3, signed=False)
    x = torch.linspace(-1, 3, 401)
    codes = grid.codes(x)
    assert torch.equal(codes.decode(), grid.round(x)) and codes.levels == 2**4
    assert (grid.round(x)[x <= 0] == 0).all() and (grid.round(x)[x >= 2] == 2).all()
    inside = (x > 0.5) & (x < 2)
    assert (grid.round(x) - x)[inside].abs().max() <= 1.5 / 7 / 2 + 1e-6


@pytest.mark.parametrize("variant", ["paper", "authors"])
@pytest.mark.parametrize("sample", ["gauss", "laplace"])
def test_its_error_is_never_above_the_uniform_one_and_falls_with_bits_and_breakpoints(sample, variant):
    x = channels(sample)[:100]
    m, deviation = x.abs().amax(1, keepdim=True), x.std(1, keepdim=True)
    edges = {n: optimal_edges((m / deviation).double(), n, sample).float() * deviation for n in (1, 2, 3)}
    found = {}
    for bits in (2, 3, 4, 6, 8):
        found[0, bits] = float((make_grid("full", bits, -m, m).round(x) - x).square().mean())
        for breakpoints in (1, 2, 3):
            grid = PiecewiseGrid(edges[breakpoints], bits, variant)
            found[breakpoints, bits] = float((grid.round(x) - x).square().mean())
    for (breakpoints, bits), error in found.items():
        if breakpoints:
            assert error < found[breakpoints - 1, bits], (breakpoints, bits)
        if bits > 2:
            assert error < found[breakpoints, max(b for b in (2, 3, 4, 6) if b < bits)]


def channels(shape: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if shape == "gauss":
        return torch.randn(2000, 576, generator=generator)
    uniform = torch.rand(2000, 576, generator=generator, dtype=torch.float64) - 0.5
    return (-uniform.sign() * torch.log1p(-2 * uniform.abs()) * math.sqrt(0.5)).float()


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("shape", ["gauss", "laplace"])
def test_errors_at_equal_storage(shape, bits):
    """Pieces of `bits` bits are stored in one more; from 4 bits on they are worth more than a uniform grid's."""
    x = channels(shape)[:20]
    m, deviation = x.abs().amax(1, keepdim=True), x.std(1, keepdim=True)
    p = one_shot((m / deviation).double(), shape).float() * deviation
    edges = torch.stack([0 * m, p, m])
    grids = [make_grid("full", bits, -m, m), make_grid("full", bits + 1, -m, m)]
    grids += [PiecewiseGrid(edges, bits), PiecewiseGrid(edges, bits, "authors")]
    one_value = [  # up to m the authors' inner steps are those of a uniform grid
        lambda r, p, m: authors(r, bits, m, m, overlap=True),
        lambda r, p, m: authors(r, bits + 1, m, m, overlap=True),
        lambda r, p, m: equation_3(r, bits, [0.0, p, m]),
        lambda r, p, m: authors(r, bits, p, m, overlap=False),
    ]
    errors = []
    for grid, value in zip(grids, one_value, strict=True):
        every = zip(x.tolist(), p.flatten().tolist(), m.flatten().tolist(), strict=True)
        wanted = torch.tensor([[value(r, *ends) for r in channel] for channel, *ends in every])
        errors.append(float((grid.round(x) - x).square().mean()))
        assert errors[-1] == pytest.approx(float((wanted - x).square().mean()), rel=1e-5)
    assert (errors[2] < errors[1]) == ((shape, bits) != ("gauss", 3))
    assert errors[3] < errors[2] < errors[0]
