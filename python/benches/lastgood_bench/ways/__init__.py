"""The ways to save and load, by name: lastgood's and its peers'."""

from __future__ import annotations

from lastgood_bench.ways import backup, codecs, formats, ours, pytorch
from lastgood_bench.ways.base import Way

WAYS: dict[str, type[Way]] = {
    way.name: way for way in [*ours.WAYS, *pytorch.WAYS, *formats.WAYS, *codecs.WAYS, *backup.WAYS]
}

#: What is measured without ``--peers``: what needs no packages but those of the tests.
PLAIN = ("torch.save", "torch.load mmap", "dcp", "dcp async", "dcp async cached", "safetensors")


def chosen(peers: bool) -> dict[str, type[Way]]:
    """The ways that a run measures."""
    return {name: way for name, way in WAYS.items() if peers or way.ours or name in PLAIN}
