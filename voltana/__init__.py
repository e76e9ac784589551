"""Policies for energy-efficient LLM serving: what a controller sees, what it decides, how it predicts.

Nothing here knows a simulator, a server or a GPU driver: the same objects run in `sim` and in `live`.
"""

__version__ = "0.1.0"
