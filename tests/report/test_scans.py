"""A scan's file, table and figure, from curves made by hand."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp.errors import ConfigError
from qexp.report.scan_plot import scan_figure
from qexp.report.scans import FIELDS, MODES, read_scan, scan_table, scan_text

MakeRun = Callable[..., Path]

VALUES = [0.5, 1.0, 2.0, 3.0, 8.0]


def rows(sites: int, values: Sequence[float] = VALUES, learned: float = 3.0) -> list[dict[str, object]]:
    """Curves whose quantized loss is least at 1, with a plateau to 2, and with the penalty at 0.5."""
    shapes = {
        "float": lambda value: 0.1 + 1 / (1 + abs(value)),
        "quantized": lambda value: 0.2 + max(0.0, abs(value - 1.5) - 0.5),
        "penalized": lambda value: 0.3 + value**2,
    }
    return [
        dict(zip(FIELDS, (f"act{site}", "alpha", learned, mode, value, shape(value), 100), strict=True))
        for site in range(sites)
        for mode, shape in shapes.items()
        for value in values
    ]


def scanned(make_run: MakeRun, content: list[dict[str, object]]) -> Path:
    run = make_run(metrics=[(200, 9, "train_loss", 1.0)])
    (run / "alpha_scan.csv").write_text(scan_text(content))
    return run


@given(st.lists(st.floats(-1e3, 1e300), min_size=1, max_size=9, unique=True), st.floats(allow_nan=False))
def test_numbers_read_back_exactly(values: list[float], loss: float) -> None:
    from tempfile import TemporaryDirectory

    learned = values[0]
    content = [
        dict(zip(FIELDS, ("a,b", "step", learned, mode, value, loss, 7), strict=True))
        for mode in MODES
        for value in values
    ]
    with TemporaryDirectory() as folder:
        (Path(folder) / "alpha_scan.csv").write_text(scan_text(content))
        (curve,) = read_scan(Path(folder))
    assert (curve.site, curve.quantity, curve.learned, curve.samples) == ("a,b", "step", learned, 7)
    assert curve.values == tuple(sorted(values))
    assert curve.losses == {mode: (loss,) * len(values) for mode in MODES}


def test_the_table_says_where_the_loss_is_least_and_how_far_the_learned_alpha_is(make_run: MakeRun) -> None:
    table = scan_table(read_scan(scanned(make_run, rows(2))), "title")
    assert [row["site"] for row in table.rows] == ["act0", "act1"]
    (record, _) = table.records
    assert record["quantized_value"] == 2.0  # 1 and 2 are as good: the nearer to 3
    assert record["quantized_ratio"] == 1.5
    assert record["quantized_excess"] == pytest.approx(1.0)
    assert record["penalized_value"] == 0.5
    assert record["penalized_excess"] == pytest.approx(8.75)
    assert table.rows[0]["quantized_excess"] == "1"


def test_three_panels_a_line_for_each_site_and_a_dot_on_each(make_run: MakeRun) -> None:
    run = scanned(make_run, rows(4))
    figure = scan_figure(run)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Float forward pass", "Quantized forward pass", "Quantized, with the penalty"
    ]  # fmt: skip
    for axes, mode in zip(figure.axes, MODES, strict=True):
        lines, dots = axes.lines[:4], axes.lines[4:]
        assert len(dots) == 4
        for curve, line, dot in zip(read_scan(run), lines, dots, strict=True):
            assert tuple(line.get_ydata()) == curve.losses[mode]
            assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (3.0, curve.at_learned(mode))
            assert line.get_color() == dot.get_color()
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert "in units of the activation" in axes.get_xlabel()
    assert figure.axes[0].get_ylabel() == "loss (nats)"
    assert figure.legends[0].get_texts()[0].get_text() == "act0  3"
    for text in ("resnet20 on cifar10, pact w4a4", "100 training samples", "λ = 0.01"):
        assert text in figure.get_supxlabel()


def test_many_sites_share_a_colour_bar(make_run: MakeRun) -> None:
    figure = scan_figure(scanned(make_run, rows(49)))
    assert len(figure.axes[0].lines) == 98
    assert not figure.legends
    assert figure.axes[3].get_yticklabels()[0].get_text() == "act0"


def test_an_alpha_below_zero_and_losses_without_a_number_are_drawn(make_run: MakeRun) -> None:
    figure = scan_figure(scanned(make_run, rows(2, [-1.0, *VALUES], learned=-1.0)))
    assert len(figure.axes[0].lines) == 2
    content = [row | {"loss": math.nan} for row in rows(1)]
    scan_figure(scanned(make_run, content)).savefig("/dev/null", format="png")
    table = scan_table(read_scan(scanned(make_run, content)), "title")
    assert table.rows[0]["quantized_value"] == "nan"


def test_a_file_that_is_no_scan(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(ConfigError, match="there is no scan of this run; `qexp scan"):
        read_scan(run)
    damaged = ["", "x,y\n1,2\n", scan_text(rows(1)[:-1]), scan_text(rows(1, learned=7.0))]
    damaged += [scan_text([row | {"loss": "much"} for row in rows(1)]), scan_text(rows(1)) + "act9,al"]
    for text in damaged:
        (run / "alpha_scan.csv").write_text(text)
        with pytest.raises(ConfigError, match="cannot be read as a scan"):
            read_scan(run)
    (run / "alpha_scan.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as a scan"):
        read_scan(run)


def test_the_file_is_plain_csv() -> None:
    (first, *_) = csv.DictReader(scan_text(rows(1)).splitlines())
    assert first["site"] == "act0"
    assert float(first["loss"]) == pytest.approx(0.1 + 1 / 1.5)
