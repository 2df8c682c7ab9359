"""qexp: experiments in neural-network quantization, from one command line."""

__version__ = "0.1.0"
