"""Data order and per-sample randomness that survive a resume, on any number of ranks and workers.

`Sampler` decides the order, `loader` counts what the training loop has consumed, `seeded` fixes
the augmentations of a sample, and `adapt` captures loaders of torchdata, Grain and MosaicML
Streaming."""

from __future__ import annotations

from lastgood.data._counting import Loader, loader
from lastgood.data._foreign import Stateful, adapt
from lastgood.data._sampler import Index, Sampler
from lastgood.data._seeding import Seeded, seeded

__all__ = ["Index", "Loader", "Sampler", "Seeded", "Stateful", "adapt", "loader", "seeded"]
