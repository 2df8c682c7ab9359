"""`qexp eval RUN engine=xnor`: a run's network on packed bits, with the proof that it computes the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from qexp.config import Config
from qexp.data.base import DataSource
from qexp.errors import ConfigError, TrainingError
from qexp.lit.evaluate import batches_of, device_of, evaluate, float32
from qexp.xnor.checkpoint import Sizes, load_packed, save_packed, take_over
from qexp.xnor.engine import Engine, Proof, make_engine, products, prove

PRODUCTS = {
    "native": "xor and popcount in C++",
    "triton": "xor and popcount in Triton",
    "torch": "torch, no kernel",
}


def evaluate_packed(network: nn.Module, source: DataSource, config: Config) -> dict[str, float]:
    """Prove the packed engine on the split's samples, print what was compared, and return its metrics, fused.

    `engine.save` is written once the proof holds, and not at all where there are no samples to prove it on. What
    `engine.load` brought is proved against its own integers, since the weights before it are not there.

    Raises:
        ConfigError: layers that cannot run on bits, without engine.fallback=true; a network of several answers;
            a folder to save in or a split that is not there; a folder in the place of the file to save.
        CheckpointError: `engine.load` is no packed checkpoint of this network.
        TrainingError: the proof fails: a bug of the kernel, or a processor that computes otherwise.
    """
    _refuse_place(config.engine.save)
    network.eval()
    weights = None
    if config.engine.load is not None:
        packed = load_packed(Path(config.engine.load))
        take_over(network, packed, Path(config.engine.load))
        weights = packed.weights
    engine = make_engine(network, products(print, device_of(config)), weights)
    _refuse(engine, fallback=config.engine.fallback)
    device = engine.product.device
    _require_proof(engine, None if weights else network.to(device), source, config.eval.split)
    if config.engine.save is not None:
        print(size_lines(save_packed(Path(config.engine.save), network.cpu(), engine.layers)))
    if device.type == "cpu":
        config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, device="cpu"))
    return evaluate(engine.fused, source, config, config.eval.split)


def _require_proof(engine: Engine, network: nn.Module | None, source: DataSource, split: str) -> None:
    device = engine.product.device
    with float32(device):
        batches = batches_of(source, split, device, channels_last=False)
        proof = prove(engine, network, batches, text=source.task == "language_modelling")
    print("\n".join(proof_lines(engine, proof)))
    if not proof.holds:
        where = ", ".join(proof.broken) or "the scores"
        raise TrainingError(
            f"engine xnor: packed and fake-quantized evaluation differ in {where}; please report this run."
        )


def _refuse_place(file: str | None) -> None:
    """Refuse a folder that is not there, and one in the place of the file, before the proof takes minutes."""
    if file is not None and Path(file).is_dir():
        raise ConfigError(
            f"engine.save={file}: that is a folder; name a file in it, {Path(file) / 'run.safetensors'}."
        )
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise ConfigError(f"engine.save={file}: there is no folder {Path(file).parent}; name one that is there.")


def _refuse(engine: Engine, *, fallback: bool) -> None:
    """Name the layers that stay as they are: an error, or with `fallback` a line each.

    Raises:
        ConfigError: there are some and no fallback, or there are no others.
    """
    reasons = "; ".join(f"{name} ({why})" for name, why in engine.left)
    if engine.left and not (fallback and engine.layers):
        way = (
            "engine.fallback=true leaves them as they were trained"
            if engine.layers
            else "nothing is left for bits"
        )
        raise ConfigError(f"engine=xnor: cannot run on bits: {reasons}; {way}.")
    for name, why in engine.left:
        print(f"{name}: left as it was trained, {why}")


def proof_lines(engine: Engine, proof: Proof) -> list[str]:
    """Return what was compared, a line for each layer, then the whole network."""
    lines = [f"packed engine: {PRODUCTS[engine.product.name]}; {len(engine.layers)} layers on bits"]
    width = max(len(layer.name) for layer in engine.layers)
    none = [0] * len(engine.layers)
    counts = zip(proof.accumulators, proof.weights or none, proof.outputs or none, strict=True)
    for layer, ((name, compared, different), wrong, off) in zip(engine.layers, counts, strict=True):
        how = "bytes" if layer.weight.bytes else "bits"
        verdict = "equal" if not different else f"{different} DIFFER"
        widths = f"w{layer.weight_grid.bits} a{layer.grid.bits}"
        weights = f", {wrong} weights NOT their quantizer's" if wrong else ""
        outputs = f", {off} outputs NOT the float layer's" if off else ""
        lines.append(f"  {name:{width}}  {widths} {how:5}  {compared} accumulators {verdict}{weights}{outputs}")
    scores = "bit by bit" if proof.logits else "NOT"
    lines.append(
        f"fake quantization, scale times integer sum: {proof.predictions} of {proof.samples} predictions equal,"
        f" scores {scores} the same"
    )
    if engine.fused is not engine.network:
        fused = "bit by bit" if proof.fused else "NOT"
        lines.append(f"signs packed from one linear layer to the next, as it evaluates: scores {fused} the same")
    if proof.plain is not None:
        within = "NOT within" if any(proof.outputs or []) else "within"
        lines.append(
            f"fake quantization by float layers: {proof.plain} of {proof.samples} predictions equal, each layer's"
            f" output for the same input {within} what float32 rounds"
        )
    return lines


def size_lines(sizes: Sizes) -> str:
    """Return the bytes of a packed checkpoint beside those of float32."""
    ratio = sizes.float_weights / max(1, sizes.packed_weights)
    return (
        f"packed weights: {sizes.packed_weights} bytes, {ratio:.2f} times fewer than float32's"
        f" {sizes.float_weights}; scales {sizes.scales} bytes; the whole file {sizes.file} bytes"
    )
