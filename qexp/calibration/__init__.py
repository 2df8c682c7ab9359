"""What happens to a trained network before its quantizers are used; each stage can be used alone."""

VERSIONS = {"folding": 1, "equalization": 1, "absorption": 1, "bias_correction": 1}
"""Of each stage's maths; a new number gives the runs that it acts on new names. Observers carry their own."""
