"""What the PWLQ paper's cells ask of a run: settings, recipe, and nothing where qexp has no such method."""

from __future__ import annotations

from typing import Any

import pytest

from qexp.published import Cell, artefact_names, load_artefact

NAMES = [name.removeprefix("pwlq/") for name in artefact_names() if name.startswith("pwlq/")]
NETWORKS = {"Inception-v3": "inception_v3", "ResNet-50": "resnet50", "MobileNet-v2": "mobilenet_v2"}
# The settings of every run of the paper; a table's own where it says so.
RECIPE = {
    "dataset": "imagenet",
    "calibration.samples": 512,
    "calibration.batch_size": 4,
    "observer": "top_k",
    "observer.k": 10,
    "first_last": "same",
    "quantizer.weight.scope": "channel",
    "quantizer.weight.search": "gauss_fit",
    "quantizer.weight.breakpoints": 1,
}
SETTINGS = {
    *("model", "quantizer", "bits", "first_last", "calibration.bias_correction", "observer", "observer.k"),
    *("observer.gamma", "quantizer.weight.scope", "quantizer.weight.breakpoints", "quantizer.weight.search"),
    *("quantizer.weight.overlap", "quantizer.weight.perturbation", "quantizer.weight.variant"),
}


def cells(name: str) -> tuple[Cell, ...]:
    return load_artefact(f"pwlq/{name}").cells


def keys(name: str, row: str, column: str) -> dict[str, str]:
    (cell,) = [cell for cell in cells(name) if (cell.row, cell.column) == (row, column)]
    return dict(cell.keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_runnable_cell_names_its_network_and_known_settings_only(name: str) -> None:
    for cell in cells(name):
        assert set(cell.keys) <= SETTINGS
        if cell.keys and name not in ("s_table1", "s_table1_mse", "s_table6", "fig2_right"):
            assert cell.keys["model"] == NETWORKS[cell.row.partition(",")[0].split()[0]]
        if cell.keys:
            bits = set(cell.keys) - {"model", "quantizer"}
            assert (
                not bits if cell.keys["quantizer"] == "none" else {"bits", "calibration.bias_correction"} <= bits
            )


@pytest.mark.parametrize("name", NAMES)
def test_formulas_are_asked_for_with_one_breakpoint_alone(name: str) -> None:
    for cell in cells(name):
        if int(cell.keys.get("quantizer.weight.breakpoints", 1)) > 1:
            assert cell.keys["quantizer.weight.search"] == cell.recipe["quantizer.weight.search"] == "gauss"


@pytest.mark.parametrize("name", NAMES)
def test_two_cells_of_a_table_never_ask_for_the_same_run(name: str) -> None:
    asked = [(cell.statistic, *sorted(cell.keys.items())) for cell in cells(name) if cell.keys]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("name", NAMES)
def test_a_runnable_cell_has_the_papers_recipe(name: str) -> None:
    for cell in cells(name):
        if not cell.keys:
            continue
        expected: dict[str, Any] = dict(RECIPE)
        if name == "table3":
            expected |= {"quantizer.weight.scope": "layer", "first_last": "first 32, last same"}
        if name == "s_table3":
            del expected["observer"], expected["observer.k"]
        # What a row is about is no departure from its recipe.
        search = cell.keys.get("quantizer.weight.search", "gauss_fit")
        breakpoints = int(cell.keys.get("quantizer.weight.breakpoints", 1))
        expected["quantizer.weight.search"] = "gauss" if breakpoints > 1 else search
        expected["quantizer.weight.breakpoints"] = breakpoints
        assert cell.recipe == expected, (cell.row, cell.column)


def test_methods_tasks_and_machines_that_qexp_does_not_have_have_no_keys() -> None:
    without = ("table1_accumulators", "table5", "table6", "table6_loss", "s_table6_energy", "s_table6_speedup")
    for name in NAMES:
        for cell in cells(name):
            foreign = name in without or any(
                cell.row.endswith(method)
                for method in ("clip", "QWP", "ACIQ", "LBQ", "SSBD", "QRD", "UNIQ", "DFQ", "BSD+", "V-Quant")
            )
            assert bool(cell.keys) != foreign, (name, cell.row, cell.column)


@pytest.mark.parametrize(
    ("name", "row", "column", "expected"),
    [
        ("table2", "ResNet-50 float", "FP", {"model": "resnet50", "quantizer": "none"}),
        (
            "table2",
            "ResNet-50 uniform",
            "4 bit + BC",
            {
                "model": "resnet50",
                "quantizer": "uniform",
                "bits": "w4a8",
                "calibration.bias_correction": "channel",
            },
        ),
        (
            "table3",
            "ResNet-50 PWLQ",
            "7/8",
            {
                "model": "resnet50",
                "quantizer": "pwlq",
                "bits": "w7a8",
                "quantizer.weight.scope": "layer",
                "first_last": "first 32, last same",
                "calibration.bias_correction": "none",
            },
        ),
        (
            "table4",
            "Inception-v3 PWLQ",
            "4/4",
            {
                "model": "inception_v3",
                "quantizer": "pwlq_both",
                "bits": "w4a4",
                "calibration.bias_correction": "channel",
            },
        ),
        (
            "s_table3",
            "MobileNet-v2 gamma .01",
            "6 bit",
            {
                "model": "mobilenet_v2",
                "quantizer": "pwlq",
                "bits": "w6a8",
                "observer": "percentile",
                "observer.gamma": "0.0001",
                "calibration.bias_correction": "none",
            },
        ),
        (
            "s_table4",
            "ResNet-50 uniform",
            "6 bit",
            {
                "model": "resnet50",
                "quantizer": "uniform",
                "bits": "w8a6",
                "calibration.bias_correction": "channel",
            },
        ),
    ],
)
def test_a_cell_asks_for_the_run_of_its_row_and_column(
    name: str, row: str, column: str, expected: dict[str, str]
) -> None:
    assert keys(name, row, column) == expected


def test_a_number_of_bits_in_a_column_is_the_runs() -> None:
    for name in ("table1", "table2", "s_table1", "s_table2", "s_table3"):
        for cell in cells(name):
            if cell.column != "FP":
                assert cell.keys["bits"] == f"w{cell.column[0]}a8"
                correction = "channel" if cell.column.endswith("BC") else "none"
                assert cell.keys["calibration.bias_correction"] == correction
    for name in ("table3", "table4", "s_table5"):
        for cell in cells(name):
            if cell.keys and cell.column != "32/32":
                weights, activations = cell.column.split("/")
                assert cell.keys["bits"] == f"w{weights}a{activations}"
