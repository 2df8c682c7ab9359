"""Starts a float network from a checkpoint file or a run's folder: all is checked first, then loaded whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qexp.errors import CheckpointError
from qexp.runs import run_beside

RUN_CHECKPOINT = "last.ckpt"
RUN_PREFIX = "network."
"""What a run's checkpoint puts in front of the network's names, beside entries that are not the network's."""

RUN_KEY = "qexp"
"""Where in a run's checkpoint, which is Lightning's, our own state lies."""

QUANTIZERS = "quantizers"
"""Key in that state of what quantizers hold: the names of tensors that a network without them does not have."""

QUANTIZED = "quantized"
"""Key in that state of whether there are quantizers at all: some, of signs or of fixed grids, hold no tensors."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Left in front of names by data-parallel training and by torch.compile."""

NESTED_UNDER = ("state_dict", "model", "net", "model_state_dict")
DAMAGED = "the file is damaged or cut short; copy or download it again"
REFUSED = re.compile(r"GLOBAL|TorchScript|[Uu]nsupported (class|global)|unrecognized function")
"""In torch's error when a file holds objects that `weights_only` does not allow, and not when it is damaged."""

SHOWN = 3
"""How many names an error lists of each sort."""


def load_weights(model: nn.Module, path: str | Path, *, of_float: bool = False) -> None:
    """Load the weights at `path` into `model`, in place, or raise and leave `model` as it was.

    `path` is a file (a state dict at top level or under `state_dict`, `model`, `net`; or `.safetensors`) or the
    folder of a run. Prefixes of wrappers are stripped; a model class may say in `renamed`, a dict from the
    beginnings of foreign names to those of its own, how others call its layers, in `rewritten`, pairs of a pattern
    and what takes its place, the same for the middle of a name, and in `left_out`, a tuple of beginnings, what
    others have beside them. Every other name and every shape has to match; only batch norm's
    `num_batches_tracked`, which old checkpoints lack, may be missing.

    Args:
        of_float: the weights of a quantized run are refused: without its quantizers it is no network that anybody
            trained.

    Raises:
        CheckpointError: `path` is missing, a URL, damaged, holds more than tensors and plain values, or holds the
            weights of another model; the text says which.
    """
    file = checkpoint_file(str(path))
    renamed: Mapping[str, str] = getattr(model, "renamed", {})
    left_out: tuple[str, ...] = getattr(model, "left_out", ())
    content = read(file)
    rewritten: Sequence[tuple[str, str]] = getattr(model, "rewritten", ())
    named = own_names(network_tensors(content, file), renamed, file, rewritten)
    for name in (quantizers := quantizer_names(content)):
        named.pop(name, None)
    if of_float and is_quantized(content, file):
        held = f" ({listed(quantizers)})" if quantizers else ""
        raise CheckpointError(
            f"{file}: of a quantized run{held}; here a trained float network is needed, a run of"
            " quantizer=none or a checkpoint."
        )
    found = {name: tensor for name, tensor in named.items() if not name.startswith(left_out)}
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)
    refuse_mismatch(found, wanted, type(model).__name__, file)
    model.load_state_dict(found)


def checkpoint_file(path: str) -> Path:
    """Return the file to read for `path`, a file or a run's folder; CheckpointError when there is none."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise CheckpointError(f"{path}: a URL is not read; download the file, check it, and give its path.")
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / RUN_CHECKPOINT
        if not file.is_file():
            raise CheckpointError(f"{path}: this folder holds no {RUN_CHECKPOINT}; give a run's folder or a file.")
    if not file.is_file():
        raise CheckpointError(
            f"{path}: there is no such file; model.weights takes a checkpoint or a run's folder."
        )
    return file


def read(file: Path) -> object:
    """Return what `file` holds, read without running code of its own; CheckpointError when it cannot be."""
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise CheckpointError(f"{file}: it cannot be read ({error.strerror}).") from error
    if not start:
        raise CheckpointError(f"{file}: the file is empty; copy or download it again.")
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    if not start.startswith((b"\x80", b"PK")):
        page = start.lstrip().lower().startswith((b"<!doctype", b"<html"))
        sort = "a web page" if page else "another kind of file"
        raise CheckpointError(f"{file}: this is {sort}, not a checkpoint of torch; download or save it again.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes can end the unpickler in any exception
        text = str(error)
        if REFUSED.search(text):
            raise CheckpointError(
                f"{file}: it holds objects other than tensors and plain values{refused_name(text)}, which are "
                "never loaded because they can run code; save model.state_dict() alone."
            ) from error
        raise CheckpointError(f"{file}: {DAMAGED}.") from error


def refused_name(text: str) -> str:
    """Return ` (its.name)` of the object that torch's error `text` says it refused, or nothing."""
    named = re.search(r"GLOBAL ([\w.]+)", text)
    return f" ({named[1]})" if named else ""


def read_safetensors(file: Path) -> object:
    """Return the tensors of a `.safetensors` file by name."""
    try:
        return load_file(file)
    except Exception as error:  # the reader has exceptions of its own
        raise CheckpointError(f"{file}: {DAMAGED}.") from error


def network_tensors(content: object, file: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint's `content`; of a run's, only what belongs to the network."""
    for key in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file}: no state dict in it, at top level or under {', '.join(NESTED_UNDER)}.")
    strange = [str(key) for key, value in content.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if strange:
        raise CheckpointError(f"{file}: no state dict in it, these entries are not tensors: {listed(strange)}.")
    if any(name.startswith(RUN_PREFIX) for name in content):
        return {name.removeprefix(RUN_PREFIX): t for name, t in content.items() if name.startswith(RUN_PREFIX)}
    return dict(content)


def run_state(content: object) -> Mapping[str, object] | None:
    """Return our own state in a checkpoint; None where it is not a run's."""
    state = content.get(RUN_KEY) if isinstance(content, Mapping) else None
    return state if isinstance(state, Mapping) else None


def quantizer_names(content: object) -> list[str]:
    """Return the tensors that a run's checkpoint says its quantizers hold: bits may be lowered run by run."""
    names = (run_state(content) or {}).get(QUANTIZERS)
    return [str(name) for name in names] if isinstance(names, list) else []


def is_quantized(content: object, file: Path) -> bool:
    """Say whether a run's checkpoint is of a network with quantizers.

    Those of earlier versions tell it by their quantizers' tensors alone; for the rest the run's identity beside
    them does.
    """
    state = run_state(content)
    if state is None:
        return False
    if QUANTIZED in state or quantizer_names(content):
        return bool(state.get(QUANTIZED, True))
    run = run_beside(file)
    return run is not None and run.identity.get("quantization") is not None


def own_names(
    tensors: Mapping[str, Tensor],
    renamed: Mapping[str, str],
    file: Path,
    rewritten: Sequence[tuple[str, str]] = (),
) -> dict[str, Tensor]:
    """Return `tensors` under the model's own names: wrappers' prefixes stripped, `renamed`, `rewritten`."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = name
        while own.startswith(WRAPPER_PREFIXES):
            own = own.split(".", 1)[1]
        for foreign, ours in renamed.items():
            if own.startswith(foreign):
                own = ours + own.removeprefix(foreign)
                break
        for pattern, replacement in rewritten:
            own = re.sub(pattern, replacement, own)
        if own in result:
            raise CheckpointError(f"{file}: two entries mean {own}, one of them is {name}; keep one of them.")
        result[own] = tensor
    return result


def refuse_mismatch(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], model_name: str, file: Path
) -> None:
    """Raise CheckpointError when names or shapes differ, or when a value is not a finite number."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the model's {len(wanted)} entries are missing ({listed(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} of the file's {len(found)} are unknown ({listed(unexpected)})")
    if shapes:
        problems.append(f"{len(shapes)} have another shape ({listed(shapes)})")
    if problems:
        way_out = "choose the model that it was made for, or other weights"
        raise CheckpointError(f"{file}: not the weights of this {model_name}: {'; '.join(problems)}; {way_out}.")
    strange = [name for name, t in found.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if strange:
        raise CheckpointError(f"{file}: values that are no finite numbers in {listed(strange)}; save it again.")


def listed(names: Sequence[str]) -> str:
    """Return the first few of `names` with commas, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
