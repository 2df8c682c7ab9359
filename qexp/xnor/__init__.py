"""Inference on packed bits: products by exclusive or and popcount, checked against fake quantization.

Courbariaux et al. 2016, arXiv 1602.02830, equations 6 and 7, algorithm 4; Hubara et al., "Quantized Neural
Networks", arXiv 1609.07061.
"""
