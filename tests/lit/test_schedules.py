from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.lit import schedules

progress = st.floats(0.0, 1.0)


def test_multistep_scales_the_papers_milestones_to_the_run():
    short = schedules.multistep(milestones=[60, 120], of=200, factor=0.1, epochs=20)
    # 60 and 120 of 200 epochs are epochs 6 and 12 of 20.
    assert [round(short(epoch / 20), 6) for epoch in (0, 5, 6, 11, 12, 19)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_step_is_the_imagenet_recipe():
    schedule = schedules.step(every=30, of=90, factor=0.1)
    assert [round(schedule(epoch / 90), 6) for epoch in (0, 29, 30, 59, 60, 89)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


@given(progress)
def test_cosine_is_its_closed_form(at):
    assert schedules.cosine(final=0.1)(at) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * at)) / 2)


@given(progress)
def test_onecycle_rises_then_falls(at):
    schedule = schedules.onecycle(rise=0.3, start=0.04, final=1e-4)
    up = 0.04 + 0.96 * (1 - math.cos(math.pi * at / 0.3)) / 2
    down = 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (at - 0.3) / 0.7)) / 2
    assert schedule(at) == pytest.approx(up if at < 0.3 else down)


@given(progress)
def test_constant(at):
    assert schedules.constant()(at) == 1.0


def test_warmup_rises_linearly_over_its_epochs():
    schedule = schedules.constant(warmup_epochs=2, epochs=10)
    assert [round(schedule(epoch / 10), 6) for epoch in (0, 1, 2, 5)] == [0, 0.5, 1, 1]
    falling = schedules.multistep(milestones=[1, 5], of=10, factor=0.1, warmup_epochs=2, epochs=10)
    assert [round(falling(epoch / 10), 6) for epoch in (0, 1, 2, 5)] == [0, 0.05, 0.1, 0.01]


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.multistep(milestones=[120, 60], of=200),
        lambda: schedules.multistep(milestones=[300], of=200),
        lambda: schedules.step(every=0, of=90),
        lambda: schedules.onecycle(rise=1.0),
        lambda: schedules.cosine(warmup_epochs=10, epochs=10),
    ],
)
def test_a_schedule_without_meaning_is_refused(make):
    with pytest.raises(ConfigError, match=r"schedule\."):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.cosine(final=-0.1),
        lambda: schedules.onecycle(start=-0.1),
        lambda: schedules.onecycle(final=-0.1),
        lambda: schedules.step(every=1, of=2, factor=-1.0),
    ],
)
def test_a_learning_rate_is_never_negative(make):
    with pytest.raises(ConfigError, match="0 or more"):
        make()


def test_step_falls_once_more_where_the_length_leaves_a_rest():
    schedule = schedules.step(every=30, of=100)
    assert [round(schedule(epoch / 100), 6) for epoch in (0, 29, 30, 60, 90, 99)] == [
        1,
        1,
        0.1,
        0.01,
        0.001,
        0.001,
    ]
