"""The PWLQ paper's cells: their number, single values typed a second time, and the tables against each other."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qexp.published import Cell, artefact_names, load_artefact

# Counted on the printed tables: networks x rows x columns, or filled places where a table has holes.
CELLS = {
    "table1": 3 * 3 * 3,
    "table1_accumulators": 3,
    "table2": 3 + 3 * 2 * 6,
    "table3": 2 * 2 * 6,
    "table4": (6 + 4 + 4 + 3) + (6 + 3 + 5 + 3) + (5 + 5 + 2),
    "table4_loss": 2,
    "table5": 4 + 4 + 2,
    "table6": 4 + 4 + 2,
    "table6_loss": 1,
    "fig2_left": 3 * 3 * 2,
    "fig2_right": 5 + 1,
    "s_table1": 2 * 5,
    "s_table1_mse": 2 * 5,
    "s_table2": 3 * 3 * 6,
    "s_table3": 3 * 6 * 3,
    "s_table4": 3 * 2 * 3,
    "s_table5": 3 * 2 * 3,
    "s_table6": 3,
    "s_table6_energy": 3,
    "s_table6_speedup": 3 * 2,
}

RETYPED = [
    ("table1", "Inception-v3, 3 breakpoints", "3 bit", 74.07),
    ("table1", "ResNet-50, 2 breakpoints", "5 bit", 75.94),
    ("table1", "MobileNet-v2, 1 breakpoint", "3 bit", 16.77),
    ("table1", "MobileNet-v2, 2 breakpoints", "4 bit", 65.74),
    ("table1_accumulators", "2 breakpoints", "accumulators", 5),
    ("table2", "Inception-v3 float", "FP", 77.49),
    ("table2", "Inception-v3 uniform", "4 bit + BC", 62.46),
    ("table2", "ResNet-50 float", "FP", 76.13),
    ("table2", "ResNet-50 uniform", "6 bit + BC", 75.92),
    ("table2", "ResNet-50 PWLQ", "4 bit", 74.28),
    ("table2", "MobileNet-v2 float", "FP", 71.88),
    ("table2", "MobileNet-v2 uniform", "4 bit", 11.37),
    ("table2", "MobileNet-v2 PWLQ", "6 bit", 70.82),
    ("table3", "Inception-v3 OCS + clip", "4/8", 4.8),
    ("table3", "Inception-v3 PWLQ", "5/8", 75.5),
    ("table3", "ResNet-50 OCS + clip", "5/8", 73.4),
    ("table3", "ResNet-50 PWLQ", "7/8", 76.0),
    ("table4", "Inception-v3 QWP", "4/8", 71.00),
    ("table4", "Inception-v3 LBQ", "4/4", 71.61),
    ("table4", "Inception-v3 QRD", "32/32", 77.97),
    ("table4", "ResNet-50 SSBD", "8/8", 74.95),
    ("table4", "ResNet-50 ACIQ", "4/4", 73.80),
    ("table4", "MobileNet-v2 QWP", "4/8", 0.10),
    ("table4", "MobileNet-v2 DFQ", "8/8", 71.19),
    ("table5", "uniform", "4/8", 50.05),
    ("table5", "PWLQ", "6/8", 70.39),
    ("table6", "uniform", "8/8", 68.50),
    ("table6", "DFQ", "8/8", 67.91),
    ("fig2_left", "ResNet-50 BSD+", "overlapping", 69.3),
    ("fig2_left", "MobileNet-v2 PWLQ", "overlapping", 15.9),
    ("fig2_left", "Inception-v3 V-Quant", "non-overlapping", 44.3),
    ("fig2_right", "median of 100 runs", "20%", 74.56),
    ("fig2_right", "worst of 100 runs", "5%", 74.05),
    ("s_table1", "gradient descent", "7 bit", 77.50),
    ("s_table1", "one-shot", "5 bit", 77.15),
    ("s_table1_mse", "gradient descent", "8 bit", 7.56e-8),
    ("s_table1_mse", "one-shot", "4 bit", 2.31e-5),
    ("s_table2", "Inception-v3 Laplace", "4 bit + BC", 75.97),
    ("s_table2", "ResNet-50 search", "4 bit", 72.55),
    ("s_table2", "MobileNet-v2 search", "4 bit + BC", 69.28),
    ("s_table3", "Inception-v3 gamma .1", "4 bit", 73.78),
    ("s_table3", "ResNet-50 top-20", "6 bit", 75.99),
    ("s_table3", "MobileNet-v2 gamma .001", "8 bit", 71.67),
    ("s_table4", "Inception-v3 PWLQ", "4 bit", 75.95),
    ("s_table4", "MobileNet-v2 uniform", "4 bit", 1.41),
    ("s_table5", "ResNet-50 uniform", "4/4", 59.84),
    ("s_table5", "MobileNet-v2 PWLQ", "4/4", 63.64),
    ("s_table6", "4-bit uniform", "top-1", 72.45),
    ("s_table6_energy", "4-bit PWLQ", "energy", 0.78),
    ("s_table6_speedup", "4-bit uniform", "8 GB/s", 1.73),
]

NETWORKS = {"Inception-v3": "inception_v3", "ResNet-50": "resnet50", "MobileNet-v2": "mobilenet_v2"}
WIDTHS = ("8 bit", "8 bit + BC", "6 bit", "6 bit + BC", "4 bit", "4 bit + BC")


def cells(name: str) -> tuple[Cell, ...]:
    return load_artefact(f"pwlq/{name}").cells


def values(name: str) -> dict[tuple[str, str], float]:
    """Return the values in the artefact's own unit, as printed."""
    return {(cell.row, cell.column): cell.value for cell in cells(name)}


def test_every_table_and_figure_is_there() -> None:
    assert {name for name in artefact_names() if name.startswith("pwlq/")} == {f"pwlq/{name}" for name in CELLS}


@pytest.mark.parametrize(("name", "count"), CELLS.items())
def test_no_cell_is_missing_or_added(name: str, count: int) -> None:
    assert len(cells(name)) == len(values(name)) == count


@pytest.mark.parametrize(("name", "row", "column", "value"), RETYPED)
def test_a_cell_is_what_the_table_prints(name: str, row: str, column: str, value: float) -> None:
    assert values(name)[row, column] == value


def test_a_cell_names_its_paper_its_table_and_how_it_was_read() -> None:
    for name in CELLS:
        main, figure = not name.startswith("s_"), name.startswith("fig")
        number = name.removeprefix("s_").removeprefix("table").partition("_")[0]
        of = "" if main else ", supplement"
        part = f"Figure 2 ({name.removeprefix('fig2_')})" if figure else f"Table {number}"
        for cell in cells(name):
            assert cell.source == f"Fang et al., ECCV 2020, arXiv 2002.00104{of}, {part}"
            assert cell.how == ("read_off" if figure else "printed")


def test_the_misprinted_losses_are_read_as_their_accuracies_give_them() -> None:
    accuracies = {**values("table4"), **values("table6")}
    found = {}
    for cell in (*cells("table4_loss"), *cells("table6_loss")):
        loss = accuracies[cell.row, "32/32"] - accuracies[cell.row, cell.column]
        assert cell.reading == pytest.approx(loss, abs=1e-9)
        assert cell.comparable == pytest.approx(loss / 100.0, abs=1e-9)
        assert f"= {loss:.2f}" in cell.note
        found[cell.row] = (cell.value, cell.reading)
    assert found == {"ResNet-50 UNIQ": (2.56, 2.65), "MobileNet-v2 PWLQ": (2.68, 2.66), "uniform": (0.43, 0.33)}
    assert round(76.02 - 73.37, 2) == 2.65
    assert round(71.88 - 69.22, 2) == 2.66
    assert round(68.70 - 68.37, 2) == 0.33


def test_no_other_cell_is_corrected() -> None:
    corrected = {name for name in CELLS for cell in cells(name) if cell.reading is not None}
    assert corrected == {"table4_loss", "table6_loss"}


@pytest.mark.parametrize("network", NETWORKS)
def test_one_breakpoint_is_the_row_of_the_gaussian(network: str) -> None:
    one, gauss = values("table1"), values("s_table2")
    assert one[f"{network}, 1 breakpoint", "4 bit"] == gauss[f"{network} Gauss", "4 bit"]
    assert one[f"{network}, 1 breakpoint", "4 bit"] == values("table2")[f"{network} PWLQ", "4 bit"]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_gaussian_row_is_table2(network: str) -> None:
    gauss, table = values("s_table2"), values("table2")
    for width in WIDTHS:
        assert gauss[f"{network} Gauss", width] == table[f"{network} PWLQ", width]


def test_the_one_shot_row_is_table2() -> None:
    one_shot, table = values("s_table1"), values("table2")
    for width in ("8 bit", "6 bit", "4 bit"):
        assert one_shot["one-shot", width] == table["Inception-v3 PWLQ", width]


def test_prints_of_one_cell_are_as_far_apart_as_the_spread() -> None:
    once = values("table1")["Inception-v3, 1 breakpoint", "5 bit"]
    again = [value for (_, column), value in values("s_table1").items() if column == "5 bit"]
    distances = [abs(once - value) for value in again]
    table, ranges = values("table2"), values("s_table3")
    top10 = {
        (network, width): abs(ranges[f"{network} top-10", width] - table[f"{network} PWLQ", width])
        for network in NETWORKS
        for width in ("8 bit", "6 bit", "4 bit")
    }
    differing = {place: round(distance, 2) for place, distance in top10.items() if distance > 1e-9}
    assert differing == {
        ("Inception-v3", "4 bit"): 0.03,
        ("ResNet-50", "8 bit"): 0.01,
        ("ResNet-50", "6 bit"): 0.02,
    }
    spread = load_artefact("pwlq/table1").spread
    assert spread == pytest.approx(max(distances + list(top10.values())) / 100.0)
    for name in ("table2", "table4", "s_table1", "s_table2", "s_table3", "s_table4", "s_table5", "s_table6"):
        assert load_artefact(f"pwlq/{name}").spread == spread
    # One decimal hides .05 points; how well a bar's height can be read stands by itself.
    assert load_artefact("pwlq/table3").spread == pytest.approx(spread + 0.0005)
    assert load_artefact("pwlq/fig2_left").spread == spread
    assert {cell.read_to for cell in load_artefact("pwlq/fig2_left").cells} == {0.003}


def test_every_spread_is_explained() -> None:
    for name in CELLS:
        artefact = load_artefact(f"pwlq/{name}")
        told = any("spread" in note for note in artefact.notes)
        assert told or name in ("table1_accumulators", "table4_loss", "table6_loss"), name


@pytest.mark.parametrize("network", NETWORKS)
def test_table4_repeats_the_other_tables(network: str) -> None:
    mine, table, both = values("table4"), values("table2"), values("s_table5")
    row = f"{network} PWLQ"
    assert mine[row, "32/32"] == table[f"{network} float", "FP"]
    assert mine[row, "8/8"] == table[row, "8 bit + BC"]
    assert mine[row, "4/8"] == table[row, "4 bit + BC"]
    if network != "MobileNet-v2":  # its 4/4 is in the supplement alone
        assert mine[row, "4/4"] == both[row, "4/4"]


@pytest.mark.parametrize("network", NETWORKS)
def test_uniform_activations_at_8_bits_are_table2(network: str) -> None:
    row = f"{network} uniform"
    expected = values("table2")[row, "8 bit + BC"]
    assert values("s_table4")[row, "8 bit"] == values("s_table5")[row, "8/8"] == expected


def test_the_accelerators_accuracies_are_table2() -> None:
    table, mine = values("table2"), values("s_table6")
    assert mine["8-bit uniform", "top-1"] == table["ResNet-50 uniform", "8 bit + BC"]
    assert mine["4-bit uniform", "top-1"] == table["ResNet-50 uniform", "4 bit + BC"]
    assert mine["4-bit PWLQ", "top-1"] == table["ResNet-50 PWLQ", "4 bit + BC"]


def test_figure2_is_table2_where_they_meet() -> None:
    table = values("table2")
    for network in NETWORKS:
        bar = values("fig2_left")[f"{network} PWLQ", "non-overlapping"]
        assert bar == pytest.approx(table[f"{network} PWLQ", "4 bit"], abs=0.3)
    assert values("fig2_right")["median of 100 runs", "0%"] == table["Inception-v3 PWLQ", "4 bit"]


def test_a_breakpoint_more_needs_two_accumulators_more() -> None:
    for (row, _), value in values("table1_accumulators").items():
        assert value == 2 * int(row[0]) + 1


def test_a_smaller_error_of_the_weights_by_gradient_descent_is_within_one_percent() -> None:
    errors = values("s_table1_mse")
    for width in ("8 bit", "7 bit", "6 bit", "5 bit", "4 bit"):
        exact, one_shot = errors["gradient descent", width], errors["one-shot", width]
        assert exact <= one_shot <= 1.01 * exact
    # A bit less doubles the step: about four times the error.
    exact_only = [errors["gradient descent", f"{bits} bit"] for bits in (8, 7, 6, 5, 4)]
    assert all(4.0 < more / less < 4.4 for less, more in pairwise(exact_only))


def test_other_papers_float_networks_are_noted() -> None:
    table = values("table4")
    for cell in cells("table4"):
        if cell.row.endswith(("ACIQ", "DFQ")):
            assert f"{table[cell.row, '32/32']:.2f}" in cell.note
            network = cell.row.rpartition(" ")[0]
            assert f"{table[f'{network} PWLQ', '32/32']:.2f}" in cell.note
    for name in ("table5", "table6"):
        (note,) = {cell.note for cell in cells(name) if cell.row == "DFQ"}
        assert f"{values(name)['DFQ', '32/32']:.2f}" in note
