"""The C++ kernel for torch's tensors, on the CPU; it trusts the shapes that are checked here."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qexp.xnor.packing import BLOCK, words_for

_WORK = 3e5
"""Words, or values, below which one thread is faster than several."""

_LARGE = 2**22
"""Bytes from which memory is asked for in large pages."""


class _Problem(ctypes.Structure):
    """`Problem` of kernel.cpp, field by field."""

    _fields_ = (
        ("geometry", ctypes.c_int64 * 13),
        ("activations", ctypes.c_void_p),
        ("activation_planes", ctypes.c_int64),
        ("unit", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("weight_planes", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bytes", ctypes.c_bool),
        ("base", ctypes.c_void_p),
        ("base_rows", ctypes.c_int64),
        ("sums", ctypes.c_void_p),
        ("bits", ctypes.c_void_p),
        ("thresholds", ctypes.c_void_p),
        ("flips", ctypes.c_void_p),
    )


class Kernel:
    """The functions of a built library. All tensors are contiguous and on the CPU.

    Raises:
        ValueError: by every function, a tensor of another type or shape than it says.
    """

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
        pointer, whole, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        real, exact = ctypes.c_float, ctypes.c_double

        def function(name: str, *arguments: Any, result: Any = None) -> Any:
            found = functions[f"qexp_{name}"]
            found.argtypes, found.restype = arguments, result
            return found

        self._use_team = function("use_team", pointer)
        self._use_team(_team())
        self._product = function("product", ctypes.POINTER(_Problem), small, small)
        self._pack_signs = function("pack_signs", pointer, whole, whole, pointer, small)
        self._pack_codes = function("pack_codes", pointer, whole, whole, small, pointer, small)
        self._quantize = function("quantize", pointer, whole, real, real, small, pointer, small)
        self._rate = function("popcount_rate", small, exact, result=exact)
        self._wish_large_pages = function("wish_large_pages", pointer, whole)
        self.best_path: int = function("best_path", result=small)()
        """The fastest way that this processor has: 0 portable, 1 AVX2, 2 AVX-512 with a popcount of its own."""
        self.has_bytes = bool(function("has_bytes", result=small)())
        """Whether products of bytes run here (AVX-512 VNNI)."""

    def product(
        self,
        activations: Tensor,
        weights: Tensor,
        columns: int,
        base: Tensor,
        geometry: Sequence[int],
        thresholds: Tensor | None = None,
        flips: Tensor | None = None,
        path: int = -1,
    ) -> Tensor:
        """Return the sums (rows, columns), int32, or, with thresholds, which of them reach theirs, packed.

        Args:
            activations: (planes, pixels, words), int64, or (1, pixels, channels), uint8.
            weights: as `packing.panels` or, for bytes, `packing.byte_masks` orders them.
            columns: output channels.
            base: (rows or a divisor of them, columns), int32.
            geometry: the numbers of `product.Geometry`.
            thresholds: (columns padded to whole blocks,), int32; the result is then (rows, blocks), int64.
            flips: (blocks,), int64; a bit of the result is turned where it has a 1.
            path: which instructions; -1: the fastest here.
        """
        bytes_ = activations.dtype == torch.uint8
        _need(activations, "activations", torch.uint8 if bytes_ else torch.int64, dims=3)
        _need(weights, "weights", torch.int64)
        _need(base, "base", torch.int32, dims=2)
        images, height, width, out_height, out_width, kernel_height, kernel_width, *steps = geometry
        rows, taps = images * out_height * out_width, kernel_height * kernel_width
        if len(steps) != 6 or min(rows, height, width) < 0 or taps <= 0 or min(steps[:2]) <= 0:
            raise ValueError(f"geometry: {list(geometry)}")
        if path > self.best_path or (bytes_ and not self.has_bytes):
            raise ValueError(f"path {path}, bytes {bytes_}: not on this processor")
        planes, pixels, unit = activations.shape
        if pixels != images * height * width or (bytes_ and planes != 1):
            raise ValueError(f"activations: {tuple(activations.shape)}")
        blocks, span = -(-columns // BLOCK), taps * unit
        weight_planes = 1 if bytes_ else len(weights)
        ordered = (blocks, 4, -(-span // 4)) if bytes_ else (weight_planes, blocks, 2, span, 32)
        if weights.shape != ordered or len(base) == 0 or base.shape[1] != columns:
            raise ValueError(f"weights: {tuple(weights.shape)}, base: {tuple(base.shape)}")
        problem = _Problem(
            geometry=(ctypes.c_int64 * 13)(*geometry),
            activations=activations.data_ptr(),
            activation_planes=planes,
            unit=unit * activations.element_size(),
            weights=weights.data_ptr(),
            weight_planes=weight_planes,
            columns=columns,
            bytes=bytes_,
            base=base.data_ptr(),
            base_rows=len(base),
        )
        if thresholds is None:
            result = self._fresh((rows, columns), torch.int32)
            problem.sums = result.data_ptr()
        else:
            assert flips is not None
            _need(thresholds, "thresholds", torch.int32, blocks * BLOCK)
            _need(flips, "flips", torch.int64, blocks)
            result = self._fresh((rows, blocks), torch.int64)
            problem.bits = result.data_ptr()
            problem.thresholds, problem.flips = thresholds.data_ptr(), flips.data_ptr()
        work = float(rows) * columns * span * planes * weight_planes
        self._product(problem, self.best_path if path < 0 else path, _threads(work))
        return result

    def pack_signs(self, values: Tensor) -> Tensor:
        """Pack float32 values (rows, n) into (1, rows, words): 1 where the value is at least 0."""
        _need(values, "values", torch.float32, dims=2)
        rows, count = values.shape
        bits = torch.empty((1, rows, words_for(count)), dtype=torch.int64)
        self._pack_signs(values.data_ptr(), rows, count, bits.data_ptr(), _threads(values.numel()))
        return bits

    def pack_codes(self, codes: Tensor, planes: int) -> Tensor:
        """Pack codes (rows, n), uint8, into (planes, rows, words); planes from 1 to 8."""
        _need(codes, "codes", torch.uint8, dims=2)
        if not 1 <= planes <= 8:
            raise ValueError(f"planes: {planes}")
        rows, count = codes.shape
        bits = torch.empty((planes, rows, words_for(count)), dtype=torch.int64)
        self._pack_codes(codes.data_ptr(), rows, count, planes, bits.data_ptr(), _threads(codes.numel()))
        return bits

    def quantize(self, values: Tensor, lowest: float, step: float, highest: int) -> Tensor:
        """Return round((value - lowest) / step), from 0 to `highest`, at most 255, as uint8."""
        _need(values, "values", torch.float32)
        if not 1 <= highest <= 255:
            raise ValueError(f"highest: {highest}")
        codes = torch.empty(values.shape, dtype=torch.uint8)
        count = values.numel()
        self._quantize(values.data_ptr(), count, lowest, step, highest, codes.data_ptr(), _threads(count))
        return codes

    def popcount_rate(self, seconds: float) -> float:
        """Return the bits a second that exclusive or, popcount and sum alone take, on all threads."""
        return float(self._rate(torch.get_num_threads(), seconds))

    def _fresh(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        if (size := tensor.numel() * tensor.element_size()) >= _LARGE:
            self._wish_large_pages(tensor.data_ptr(), size)
        return tensor


def _team() -> int | None:
    """Return where a parallel region of GNU's OpenMP begins, or of what stands in for it; None: nowhere."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # macOS and Windows have others
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    return None


def _threads(work: float) -> int:
    return 1 if work < _WORK else torch.get_num_threads()


def _need(
    tensor: Tensor, name: str, dtype: torch.dtype, count: int | None = None, dims: int | None = None
) -> None:
    fits = count in (None, tensor.numel()) and dims in (None, tensor.dim())
    if not (fits and tensor.device.type == "cpu" and tensor.dtype == dtype and tensor.is_contiguous()):
        raise ValueError(f"{name}: {tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}, or not contiguous")
