"""Pure maths: tensors in, tensors out."""

VERSIONS = {"dorefa_gradient": 1, "log_gradient": 1, "shift_norm": 1, "shift_adamax": 1}
"""Of what runs use beside quantizers and roundings, which carry their own: the gradients' two forms, shift-based
batch norm, and the optimizer made of the same shifts. A new number gives the runs with it new names."""
