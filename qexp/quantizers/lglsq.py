"""LG-LSQ, our reading: a linear symmetric quantizer whose step learns from the loss, from its error, or from both.

Lin et al. 2022, "LG-LSQ: Learned Gradient Linear Symmetric Quantization", arXiv 2202.09009. Its formulas are not
public: everything beyond the abstract is this project's reconstruction. "SSG" is `scale_gradient` here, "ASR" is
`rounding=asr`, "MDE" is `discretisation=ewgs` (or mse_pull, blend); the latter two work with every uniform method.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from qexp.errors import ConfigError
from qexp.ops.numbers import is_positive
from qexp.ops.rounding import ste
from qexp.ops.simulated import scaled_simulated_gradient
from qexp.ops.steps import step_gradient
from qexp.quantizers.base import Rounding, Site
from qexp.quantizers.llsq import LLSQ


class LGLSQ(LLSQ):
    """LLSQ's grid and start; what moves the step is a switch.

    Args:
        scale_gradient: `ssg`, the scaled simulated gradient alone; `lsq`, the loss's gradient over sqrt(N Q);
            `hybrid`, the latter with `mixed_in` times the former.
        mixed_in: of `hybrid`, above 0.
        scope, power, lr_factor, weight_decay, masked: as LLSQ.

    Raises:
        ConfigError: as LLSQ; an unknown switch; `mixed_in` or `power` where it would do nothing.
    """

    def __init__(
        self,
        bits: int,
        site: Site,
        rounding: Rounding = ste,
        *,
        scale_gradient: Literal["ssg", "lsq", "hybrid"] = "hybrid",
        mixed_in: float | None = None,
        scope: Literal["layer", "channel", "element", "network", "depthwise"] = "layer",
        power: Literal[1, 2] = 2,
        lr_factor: float = 1.0,
        weight_decay: float = 0.0,
        masked: bool = True,
    ) -> None:
        super().__init__(
            bits,
            site,
            rounding,
            scope=scope,
            power=power,
            lr_factor=lr_factor,
            weight_decay=weight_decay,
            masked=masked,
        )
        if scale_gradient not in ("ssg", "lsq", "hybrid"):
            raise ConfigError(f"scale_gradient={scale_gradient}: ssg, lsq or hybrid.")
        if mixed_in is not None and scale_gradient != "hybrid":
            raise ConfigError(f"mixed_in={mixed_in}: scale_gradient={scale_gradient} mixes nothing; take hybrid.")
        if power != 2 and scale_gradient == "lsq":
            raise ConfigError(f"power={power}: scale_gradient=lsq has no rounding error; take ssg or hybrid.")
        if mixed_in is not None and not is_positive(mixed_in):
            raise ConfigError(f"mixed_in={mixed_in}: a number above 0, or null for 0.1.")
        self.scale_gradient, self.mixed_in = scale_gradient, 0.1 if mixed_in is None else float(mixed_in)

    def step_for(self, x: Tensor) -> Tensor:
        """Return the step, with the gradient that `scale_gradient` names."""
        if not torch.is_grad_enabled() or self.scale_gradient == "lsq":
            return step_gradient(self.step, self.scale_for(x))
        simulated = scaled_simulated_gradient(self.step.detach(), *self.errors(x))
        mixed_in = self.mixed_in if self.scale_gradient == "hybrid" else None
        return step_gradient(self.step, self.scale_for(x), simulated=simulated, mixed_in=mixed_in)
