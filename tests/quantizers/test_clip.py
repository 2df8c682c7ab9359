"""The fixed clip against numpy's, and against the two methods that it has to agree with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.quantizers.base import Site
from qexp.quantizers.clip import FixedClip
from qexp.quantizers.dorefa import DoReFaActivation
from qexp.quantizers.pact import PACT

ACTIVATION = Site("act", "activation", (3, 4, 4))
SIGNED = Site("conv.input", "input", (3, 4, 4), signed=True)

numbers = st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=40)


@given(numbers, st.floats(0.03125, 6, width=32), st.sampled_from([1, 2, 4, 8, 32]))
def test_it_clips_then_rounds(values: list[float], level: float, bits: int) -> None:
    x = torch.tensor(values, requires_grad=True)
    y = FixedClip(bits, ACTIVATION, level=level)(x)
    y.sum().backward()
    real = x.detach().numpy().astype(np.float64)
    step = level / (2.0**bits - 1)
    clipped = np.clip(real, 0, level)
    expected = clipped if bits == 32 else np.round(clipped / step) * step
    at_tie = np.abs(clipped / step % 1 - 0.5) < 1e-4  # float32 may round a tie the other way
    slack = np.where(at_tie & (bits != 32), 1.001 * step, 1e-5 * level)
    assert np.all(np.abs(y.detach().numpy() - expected) <= slack)
    assert x.grad.tolist() == ((real >= 0) & (real < level)).astype(float).tolist()


@pytest.mark.parametrize("site", [ACTIVATION, SIGNED])
@pytest.mark.parametrize("bits", [2, 4, 8, 32])
def test_it_is_dorefa_at_one_and_pact_with_an_alpha_that_stays(site: Site, bits: int) -> None:
    x = 4 * torch.randn(200)
    assert torch.equal(FixedClip(bits, site)(x), DoReFaActivation(bits, site)(x))
    assert torch.equal(FixedClip(bits, site, level=2.5)(x), PACT(bits, site, alpha=2.5)(x))


def test_nothing_is_learned_and_what_is_clipped_is_counted() -> None:
    quantizer = FixedClip(2, ACTIVATION, level=3.0)
    assert not list(quantizer.parameters()) and not quantizer.state_dict() and not quantizer.learned()
    description = quantizer.describe(torch.tensor([-1.0, 1.1, 3.0, 4.0]))
    assert (description.shares["clipped"].item(), description.levels) == (0.5, 3)


@pytest.mark.parametrize("level", [0.0, -1.0, float("nan"), float("inf"), "one", True])
def test_the_level_is_above_zero(level: object) -> None:
    with pytest.raises(ConfigError, match=f"level={level} does not fit"):
        FixedClip(4, ACTIVATION, level=level)
