"""A gradient quantizer behind a layer: values pass, the gradient of the layer's output is quantized in training.

It acts once, on what the layer's weights' and input's gradients are both computed from, where DoReFa (arXiv
1606.06160, algorithm 1) has it; the weights' gradients themselves keep full precision.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from qexp.errors import ConfigError
from qexp.ops.gradients import QuantizedGradient

Form = Literal["dorefa", "log"]
FORMS: tuple[Form, ...] = get_args(Form)
BITS = (2, 3, 4, 5, 6, 7, 8)


class GradientQuantizer(nn.Module):
    """Identity for values; see `qexp.ops.gradients` for what it does to gradients.

    Args:
        bits: 2 to 8.
        form: `dorefa` (uniform, stochastic) or `log` (powers of two, stochastic).

    Raises:
        ConfigError: another width or form.
    """

    def __init__(self, bits: int, form: Form = "dorefa") -> None:
        super().__init__()
        if bits not in BITS:
            raise ConfigError(f"gradient_bits={bits}: 2 to 8, or null for full precision.")
        if form not in FORMS:
            raise ConfigError(f"gradient_form={form}: choose {' or '.join(FORMS)}.")
        self.bits, self.form = bits, form

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return QuantizedGradient.apply(x, self.bits, self.form == "log") if self.training else x

    def extra_repr(self) -> str:
        """Return the text between the brackets of `repr`."""
        return f"bits={self.bits}, form={self.form}"
