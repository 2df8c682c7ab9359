"""Layers that qexp adds to torch's: with quantized weights, with shift-based normalisation, recurrent ones."""
