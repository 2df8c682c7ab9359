from __future__ import annotations

import copy
from typing import Any

import pytest

from qexp.errors import ConfigError
from qexp.jobs.experiments import configuration, words_of
from qexp.published import artefact_names, load_artefact, parse_paper
from qexp.published.cells import HOW

# Each paper with its number at arXiv.
REFERENCES = (
    "arXiv:1805.06085v2, ",
    "Fang et al., ECCV 2020, arXiv 2002.00104, ",
    "arXiv:1602.02830, ",
    "arXiv:1609.07061, ",
    "arXiv:1902.08153v3, ",
    "arXiv:2202.09009, ",
)

CELLS = [cell for name in artefact_names() for cell in load_artefact(name).cells]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.paper}/{cell.artefact}-{cell.row}-{cell.column}")
def test_every_cell_has_a_source_and_a_possible_value(cell: Any) -> None:
    assert cell.source.startswith(REFERENCES)
    assert any(place in cell.source for place in ("Table", "Figure", "ablation", "table", "abstract"))
    assert cell.how in HOW
    assert not cell.keys or {"model", "quantizer"} <= set(cell.keys)
    if cell.quantity in ("accuracy", "error"):
        assert 0.0 < cell.comparable < 1.0


@pytest.mark.parametrize("name", [name for name in artefact_names() if not name.startswith("pact/fig6")])
def test_whatever_a_run_is_judged_by_names_its_data(name: str) -> None:
    for cell in load_artefact(name).cells:
        assert not cell.keys or "dataset" in {*cell.keys, *cell.recipe} or cell.run.startswith("recipe="), cell


# Typed once more, for what was never seen on the page: (value, how) by artefact, row and column.
NOT_SEEN = {
    "table1": {
        "Maxout (float)": {
            "MNIST": (0.94, "from_memory"),
            "SVHN": (2.47, "from_memory"),
            "CIFAR-10": (11.68, "from_memory"),
        },
        "NIN (float)": {"SVHN": (2.35, "from_memory"), "CIFAR-10": (10.41, "from_memory")},
    },
    "imagenet": {
        "Float": {"AlexNet": (56.6, "from_memory"), "GoogLeNet": (71.6, "from_memory")},
        "Binary (QNN)": {"AlexNet": (41.8, "second_hand")},
        "XNOR-Net": {"AlexNet": (44.2, "second_hand")},
        "DoReFa, 1-bit weights, 2-bit activations": {"AlexNet": (50.7, "from_memory")},
        "DoReFa, with 6-bit gradients": {"AlexNet": (46.1, "second_hand")},
        "Deep Compression": {"AlexNet": (55.34, "from_memory")},
        "Gysel et al., 2 bits": {"AlexNet": (0.01, "from_memory")},
        "1-bit weights, 2-bit activations": {"AlexNet": (51.03, "second_hand")},
        "4 bits": {"GoogLeNet": (66.6, "second_hand")},
        "4 bits, 6-bit gradients": {"GoogLeNet": (66.4, "unverified")},
    },
    "imagenet_top5": {
        "Float": {"AlexNet": (80.2, "from_memory"), "GoogLeNet": (91.2, "from_memory")},
        "Binary (QNN)": {"AlexNet": (67.1, "second_hand")},
        "XNOR-Net": {"AlexNet": (69.2, "from_memory")},
        "DoReFa, 1-bit weights, 2-bit activations": {"AlexNet": (72.57, "from_memory")},
        "Deep Compression": {"AlexNet": (77.67, "from_memory")},
        "1-bit weights, 2-bit activations": {"AlexNet": (73.67, "from_memory")},
        "4 bits": {"GoogLeNet": (83.4, "from_memory")},
        "4 bits, 6-bit gradients": {"GoogLeNet": (83.1, "from_memory")},
    },
    "ptb": {
        "Float": {"LSTM": (97, "unverified")},
        "2-bit weights, 3-bit activations": {"LSTM": (220, "from_memory")},
        "3-bit weights, 4-bit activations": {"LSTM": (110, "from_memory")},
        "4 bits": {"LSTM": (100, "unverified")},
    },
    "ptb_characters": {
        "Float": {"RNN": (1.05, "from_memory")},
        "3-bit weights, 3-bit activations": {"RNN": (1.81, "from_memory")},
        "2-bit weights, 4-bit activations": {"RNN": (1.67, "from_memory")},
        "3-bit weights, 4-bit activations": {"RNN": (1.11, "from_memory")},
        "4 bits": {"RNN": (1.05, "from_memory")},
    },
}


def test_what_was_never_seen_says_so() -> None:
    found: dict[str, Any] = {}
    for cell in CELLS:
        if cell.how in ("second_hand", "unverified", "from_memory") and cell.paper != "lsq":
            rows = found.setdefault(cell.artefact, {})
            rows.setdefault(cell.row, {})[cell.column] = (cell.value, cell.how)
            assert cell.paper == "qnn"
    assert found == NOT_SEEN


def test_the_recipes_of_the_papers_are_known_as_far_as_the_sheets_know_them() -> None:
    lsq = {cell.column: cell.recipe for cell in load_artefact("lsq/table1").cells if cell.row == "ResNet18"}
    found = {
        column: (one["epochs"], one["optimizer.lr"], one["optimizer.weight_decay"]) for column, one in lsq.items()
    }
    assert found == {
        "Float": (90, 0.1, 1e-4),
        "2 bits": (90, 0.01, 0.25e-4),
        "3 bits": (90, 0.01, 0.5e-4),
        "4 bits": (90, 0.01, 1e-4),
        "8 bits": (1, 0.001, 1e-4),
    }
    at_two = [load_artefact(f"lsq/{name}").cells for name in ("gradient_scale", "schedule", "distillation")]
    two = [cell for cells in at_two for cell in cells if cell.keys["bits"] == "w2a2"]
    assert {cell.recipe["optimizer.weight_decay"] for cell in two} == {0.25e-4}
    bnn = [cell for cell in load_artefact("qnn/table1").cells if cell.row == "BNN (Theano)"]
    assert {cell.column: (cell.recipe["epochs"], cell.recipe["batch_size"]) for cell in bnn} == {
        "MNIST": (1000, 100),
        "SVHN": (200, 50),
        "CIFAR-10": (500, 50),
    }
    # The 6-bit gradients' and LG-LSQ's recipes are not known.
    assert not any(
        "epochs" in cell.recipe for name in ("qnn/imagenet", "lglsq/claims") for cell in load_artefact(name).cells
    )


def test_the_imagenet_rows_of_methods_that_qexp_has_take_their_runs() -> None:
    shown_alone = {
        cell.row for name in ("imagenet", "imagenet_top5") for cell in load_artefact(f"qnn/{name}").cells
        if not cell.keys
    }  # fmt: skip
    assert shown_alone == {"Binary (BNN, earlier)", "Deep Compression", "Gysel et al., 2 bits"}


def test_a_figures_reading_is_no_spread() -> None:
    """The values of one figure, as the sheets say how well they were read."""
    known = {name: load_artefact(name) for name in artefact_names()}
    read = {name: one for name, one in known.items() if any(cell.how == "read_off" for cell in one.cells)}
    assert {name for name, one in read.items() if not any(cell.read_to for cell in one.cells)} == {
        "pwlq/fig2_right"
    }
    (best,) = [cell for cell in known["pact/fig8"].cells if cell.row == "lambda 1e-2"]
    assert best.read_to == pytest.approx(0.02 * 0.100)  # two hundredths of the error, not of the accuracy
    (highest,) = known["pact/fig2"].cells
    assert highest.read_to == pytest.approx(0.041)
    bnn = {cell.row: cell.read_to for cell in known["qnn/bnn_fig1"].cells}
    assert bnn == {"No binarization": 0.002, "BNN (Torch7)": 0.002, "BNN (Theano)": 0.005}
    assert not any(cell.read_to for one in known.values() for cell in one.cells if cell.how != "read_off")


def test_a_spread_is_the_papers_only_for_the_network_that_it_repeats() -> None:
    theirs = {
        (name, cell.keys["model"])
        for name in artefact_names()
        for cell in load_artefact(name).cells
        if name.startswith("pact/") and cell.keys and cell.spread_from == "paper" and load_artefact(name).spread
    }
    assert theirs == {
        (f"pact/{name}", "resnet20") for name in ("table1", "table2", "fig1", "fig7", "fig8", "fig9")
    }


# The sums of rows or of all cells, added by hand.
SUMS = {
    "lsq/table1": {
        "ResNet18": 350.5, "ResNet34": 367.3, "ResNet50": 379.9, "ResNet101": 388.2, "ResNet152": 391.0,
        "VGG16 with batch norm": 365.7, "SqueezeNext-23-2x": 318.7,
    },
    "lsq/table1_top5": {"ResNet18": 446.7, "ResNet34": 457.0, "ResNet50": 464.2},
    "lsq/distillation": {"ResNet18": 138.5, "ResNet34": 146.7, "ResNet50": 229.1},
    "lsq/gradient_scale": {
        "1 / sqrt(N Q)": 67.6, "1 / sqrt(N)": 67.3, "none, rate 0.0001": 64.2, "ten times 1 / sqrt(N Q)": 67.4,
        "a tenth of 1 / sqrt(N Q)": 67.3,
    },
    "lsq/schedule": {"cosine, no restart": 67.6, "a tenth every 20 epochs": 67.2},
    "pact/table2": {
        "FL/M/FL, FL=2": 72.5, "FL/M/FL, FL=4": 41.6, "FL/M/FL, FL=8": 38.1, "FL/M/FL, FL=32": 37.2,
        "FL/M/NQ, FL=2": 71.7, "FL/M/NQ, FL=4": 40.2, "FL/M/NQ, FL=8": 38.0, "FL/M/NQ, FL=32": 36.9,
        "NQ/M/FL, FL=2": 38.8, "NQ/M/FL, FL=4": 37.5, "NQ/M/FL, FL=8": 37.4, "NQ/M/FL, FL=32": 38.0,
    },
    "pact/fig1": {"ReLU": 8.2, "quantized ReLU": 65.0, "clip": 10.3, "quantized clip": 11.2},
    "pact/fig2": {"highest alpha": 2.05},
    "pact/fig2_lowest": {"lowest alpha": 0.9},
    "pact/fig7": {"ReLU": 8.4, "per layer": 8.6, "per output channel": 9.2, "per neuron": 11.0},
    "qnn/table1": {
        "BNN (Theano)": 15.16, "BNN (Torch7), shift-based": 1.4, "BNN (Torch7), images whitened": 12.68,
        "BinaryConnect, weights alone": 13.49, "No binarization": 14.68, "Committee machines' array (1 bit)": 1.35,
        "EBP (1 bit at test)": 2.2, "Bitwise DNN (1 bit at test)": 1.33, "Hwang and Sung (ternary weights)": 1.45,
        "Gated pooling (float)": 9.31, "Maxout (float)": 15.09, "NIN (float)": 12.76,
    },
    "qnn/kernels": {"Baseline kernel": 11.4, "cuBLAS": 2.06, "XNOR kernel": 0.94},
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_rows_add_up(name: str) -> None:
    found: dict[str, float] = {}
    for cell in load_artefact(name).cells:
        found[cell.row] = found.get(cell.row, 0.0) + cell.value
    assert found == pytest.approx(SUMS[name])
    hows = {cell.how for cell in load_artefact(name).cells} - ({"from_memory"} if name == "qnn/table1" else set())
    assert hows == {
        "second_hand"
        if name.startswith("lsq")
        else "printed"
        if name in ("pact/table2", "qnn/table1")
        else "read_off"
    }


def test_a_recipe_of_no_column_is_refused() -> None:
    body = {
        "title": "t", "source": "s", "quantity": "accuracy", "unit": "percent", "metric": "test_accuracy",
        "how": "printed", "spread": 0, "columns": {"2b": {}}, "recipes": {"2 bits": {"epochs": 3}},
        "rows": {"one": {"values": {"2b": 90}}},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="recipes: no column '2 bits'"):
        parse_paper({"paper": "x", "title": "x", "reference": "x", "artefacts": {"table": body}})


def test_only_the_papers_own_spreads_are_called_so() -> None:
    theirs = [
        cell for name in artefact_names() for cell in load_artefact(name).cells if cell.spread_from == "paper"
    ]
    assert {cell.paper for cell in theirs} - {"qnn"} == {"pact", "pwlq"}
    assert not any(cell.keys for cell in theirs if cell.paper == "qnn")


def test_table1_of_pact_is_whole() -> None:
    cells = load_artefact("pact/table1").cells
    assert len(cells) == 45
    # The row and column sums of the printed table, added by hand.
    assert sum(cell.value for cell in cells if cell.row == "CIFAR10 ResNet20") == pytest.approx(8.144)
    assert sum(cell.value for cell in cells if cell.column == "FP") == pytest.approx(3.916)
    assert sum(cell.value for cell in cells if cell.column == "PACT 5b") == pytest.approx(3.918)


def test_the_papers_two_float_values_of_resnet18_are_noted() -> None:
    artefact = load_artefact("pact/table1")
    (cell,) = [cell for cell in artefact.cells if cell.row == "ResNet18" and cell.column == "FP"]
    assert (cell.value, "70.4" in cell.note) == (0.702, True)
    assert any("70.4" in note and ".702" in note for note in artefact.notes)


PAPER: dict[str, Any] = {
    "paper": "some",
    "reference": "arXiv:0000.00000",
    "artefacts": {
        "table2": {
            "title": "t",
            "source": "Table 2",
            "quantity": "error",
            "unit": "percent",
            "metric": "test_accuracy",
            "how": "printed",
            "spread": 0.005,
            "columns": {"2b": {"quantizer": "pact", "bits": "w2a2"}},
            "rows": {"FL 8": {"keys": {"model": "m", "first_last": 8}, "values": {"2b": 11.1}}},
        }
    },
}


def changed(value: Any) -> dict[str, Any]:
    plain = copy.deepcopy(PAPER)
    plain["artefacts"]["table2"]["rows"]["FL 8"]["values"] = value
    return plain


def test_a_claim_to_be_no_more_is_a_bound() -> None:
    plain = changed({"2b": 11.1})
    plain["artefacts"]["table2"]["rows"]["FL 8"]["bound"] = "at_most"
    (cell,) = parse_paper(plain)["table2"].cells
    assert cell.bound == "at_most"
    plain["artefacts"]["table2"]["rows"]["FL 8"]["bound"] = "most"
    with pytest.raises(ConfigError, match="bound='most'"):
        parse_paper(plain)
    assert [cell.bound for cell in load_artefact("lglsq/claims").cells] == ["at_most"] * 5


def test_the_float_network_that_a_claim_stands_on_has_a_float_networks_decay() -> None:
    jobs = [configuration("lglsq/claims", "train", words) for words in words_of("lglsq/claims", "")]
    assert [plain["optimizer"]["weight_decay"] for plain in jobs] == [1e-4, 5e-5]


def test_an_error_in_percent_is_compared_as_an_accuracy() -> None:
    (cell,) = parse_paper(PAPER)["table2"].cells
    assert (cell.value, cell.comparable) == (11.1, 0.889)
    assert cell.keys == {"model": "m", "first_last": "8", "quantizer": "pact", "bits": "w2a2"}


def test_a_misprint_keeps_both_readings() -> None:
    plain = changed({"2b": {"printed": 88.9, "reading": 11.1, "how": "read_off", "note": "n"}})
    (cell,) = parse_paper(plain)["table2"].cells
    assert (cell.value, cell.reading, cell.comparable, cell.how) == (88.9, 11.1, 0.889, "read_off")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"3b": 1.0}, "column '3b': no such column.* Known: 2b"),
        ({"2b": {"printed": 1.0, "nots": "x"}}, "unknown field 'nots'.*'note'"),
        ({"2b": {"printed": 1.0, "how": "guessed"}}, "how='guessed' is none of"),
        ({"2b": {"printed": 1.0, "how": "read_off", "read_to": "about"}}, "read_to='about': a number, or a share"),
    ],
)
def test_a_data_file_with_a_mistake_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_paper(changed(values))


@pytest.mark.parametrize(
    ("head", "run", "command"),
    [
        ({}, "", "train"),
        ({"command": "train"}, "", "train"),
        ({"command": "ptq"}, "model=m model.weights=FILE", "ptq"),
    ],
)
def test_a_paper_says_which_command_makes_its_runs(head: dict[str, str], run: str, command: str) -> None:
    artefact = parse_paper({**PAPER, **head})["table2"]
    (cell,) = artefact.cells
    assert (artefact.command, cell.command, cell.run) == (command, command, run)
    with pytest.raises(ConfigError, match="some: command='eval' is none of train, ptq"):
        parse_paper({**PAPER, "command": "eval"})


def test_a_number_keeps_the_digits_of_its_page() -> None:
    cells = {(cell.row, cell.column): cell for cell in load_artefact("pwlq/table2").cells}
    assert cells["ResNet-50 uniform", "8 bit"].printed == "76.10"
    (error, *_) = load_artefact("pwlq/s_table1_mse").cells
    assert (error.value, error.printed) == (7.56e-8, "7.56e-8")
    assert type(error.value) is float
    (lost,) = (cell for cell in load_artefact("pwlq/table4_loss").cells if cell.row == "MobileNet-v2 PWLQ")
    assert (lost.value, lost.printed) == (2.68, "2.66")  # a misprint: what is compared
    assert parse_paper(PAPER)["table2"].cells[0].printed == "11.1"


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"pact/tabel1.*pact/table1"):
        load_artefact("pact/tabel1")


def test_a_row_without_keys_is_a_method_that_qexp_does_not_have() -> None:
    plain = copy.deepcopy(PAPER)
    del plain["artefacts"]["table2"]["rows"]["FL 8"]["keys"]
    (cell,) = parse_paper(plain)["table2"].cells
    assert (cell.keys, cell.comparable) == ({}, 0.889)


def test_one_experiments_runs_fill_several_tables() -> None:
    for name, experiment in (("pact/fig8_training", "pact/fig8"), ("lsq/table1_top5", "lsq/table1")):
        artefact, shown = load_artefact(name), load_artefact(experiment)
        assert {cell.experiment for cell in artefact.cells} == {artefact.experiment} == {experiment}
        assert [cell.keys for cell in artefact.cells] == [cell.keys for cell in shown.cells if cell.keys]
        assert artefact.metric != shown.metric


def test_curves_are_read_off_at_twelve_epochs() -> None:
    cells = load_artefact("qnn/bnn_fig1").cells
    rows = list(dict.fromkeys(cell.row for cell in cells))
    assert len(cells) == 12 * len(rows) == 36
    sums = {row: round(sum(cell.value for cell in cells if cell.row == row), 1) for row in rows}
    assert sums == {"No binarization": 130.1, "BNN (Torch7)": 153.7, "BNN (Theano)": 198.3}


def test_table2_of_pact_is_whole() -> None:
    cells = load_artefact("pact/table2").cells
    assert len(cells) == 48
    # Column sums of the printed table, added by hand.
    sums = {
        column: sum(cell.value for cell in cells if cell.column == column) for column in ("2b", "3b", "4b", "5b")
    }
    assert sums == {
        "2b": pytest.approx(156.7),
        "3b": pytest.approx(128.3),
        "4b": pytest.approx(121.6),
        "5b": pytest.approx(121.3),
    }
