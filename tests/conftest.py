from __future__ import annotations

from hypothesis import settings

# A first call imports or compiles, and machines are shared: a slow example is no failure.
settings.register_profile("qexp", deadline=None)
settings.load_profile("qexp")
