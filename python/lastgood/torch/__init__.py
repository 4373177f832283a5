"""lastgood for PyTorch."""

from __future__ import annotations
