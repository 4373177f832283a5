"""The states of random number generators: Python's, numpy's, torch's, and named ones.

They are captured with every save and restored after everything else, because building iterators and loading objects
draws from them.
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

from lastgood import _state, _tree
from lastgood._state import Loading, Saved, Shard, Snapshot, World


class GlobalRng:
    """The generators that every library draws from by default. Those of libraries that are not imported are left
    out."""

    def capture(self, world: World, deferred: bool) -> Snapshot:
        value = _global_states()
        encoded = _tree.encode(value, _state.RNG)
        role = "own" if world.size > 1 else "same"
        snapshot = Snapshot(encoded.tree)
        snapshot.add_arrays(encoded.arrays, _state.RNG, role, deferred)
        return snapshot

    def load(self, saved: Saved, world: World) -> Loading:
        before = _global_states()
        source = world
        if saved.world_size != world.size:
            source = World(world.rank % saved.world_size, saved.world_size)
        tree = saved.trees[source.rank]
        staged = _state.stage(_owned(saved, source), _tree.arrays_of(tree), source, {})
        targets = [_from_rank(target, source.rank) for target in staged.targets]
        fresh = saved.world_size != world.size and world.rank >= saved.world_size
        if saved.world_size != world.size:
            saved.notices.append(
                f"{saved.world_size} ranks saved their generators and there are {world.size} now: "
                "random numbers are repeatable, and not those of an undisturbed run"
            )

        def apply() -> None:
            states = _tree.decode(tree, staged.finish(), _state.RNG)
            _set_global_states(states, saved.notices)
            if fresh:
                # Ranks beyond those that saved must not draw the same numbers as the ones they borrow from.
                _reseed(hashlib.sha256(repr((world.rank, states["python"])).encode()).digest())

        return Loading(targets, apply, lambda: _set_global_states(before, []), last=True)


def _owned(saved: Saved, source: World) -> Saved:
    own = {name: source.size for name in saved.own}
    return Saved(saved.component, saved.world_size, saved.trees, saved.tensors, own, saved.notices)


def _from_rank(target: Shard, rank: int) -> Shard:
    if target.role != "own":
        return target
    name = f"{target.name}@rank{rank}"
    return target._replace(name=name, role="same")


def _global_states() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {"python": {"version": version, "words": _pack(words), "gauss": gauss}}
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        states["numpy"] = numpy.random.get_state(legacy=False)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["torch.cuda"] = list(torch.cuda.get_rng_state_all())
    return states


def _set_global_states(states: dict[str, Any], notices: list[str]) -> None:
    stored = states["python"]
    random.setstate((stored["version"], _unpack(stored["words"]), stored["gauss"]))
    if "numpy" in states:
        import numpy

        numpy.random.set_state(states["numpy"])
    if "torch" in states:
        import torch

        torch.set_rng_state(states["torch"])
        devices = states.get("torch.cuda", [])
        there = torch.cuda.device_count() if devices else 0
        if there != len(devices):
            notices.append(
                f"the generators of {len(devices)} CUDA devices were saved, and there are {there} devices now"
            )
        for device, state in enumerate(devices[:there]):
            torch.cuda.set_rng_state(state, device)


def plain_states() -> dict[str, Any]:
    """The default generators as numbers, text and bytes."""
    states = _global_states()
    plain: dict[str, Any] = {"python": dict(states["python"])}
    plain["python"]["words"] = bytes(states["python"]["words"])
    if "numpy" in states:
        state = states["numpy"]
        key, pos = state["state"]["key"].tobytes(), int(state["state"]["pos"])
        plain["numpy"] = {**state, "state": {"key": key, "pos": pos}}
    if "torch" in states:
        plain["torch"] = states["torch"].numpy().tobytes()
        plain["torch.cuda"] = [state.numpy().tobytes() for state in states.get("torch.cuda", [])]
    return plain


def set_plain_states(plain: dict[str, Any]) -> None:
    """Sets the default generators to what `plain_states` gave; those of libraries that are not imported are left."""
    states: dict[str, Any] = {"python": plain["python"]}
    if "numpy" in plain and "numpy.random" in sys.modules:
        import numpy

        state = plain["numpy"]
        key = numpy.frombuffer(state["state"]["key"], dtype=numpy.uint32).copy()
        states["numpy"] = {**state, "state": {"key": key, "pos": state["state"]["pos"]}}
    if "torch" in plain and "torch" in sys.modules:
        import torch

        def tensor(state: bytes) -> Any:
            return torch.frombuffer(bytearray(state), dtype=torch.uint8)

        states["torch"] = tensor(plain["torch"])
        if plain["torch.cuda"]:
            states["torch.cuda"] = [tensor(state) for state in plain["torch.cuda"]]
    _set_global_states(states, [])


def _reseed(digest: bytes) -> None:
    random.seed(digest)
    if "numpy.random" in sys.modules:
        import numpy

        numpy.random.seed(list(digest))
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _pack(words: tuple[int, ...]) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


def _unpack(packed: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(packed[i : i + 4], "little") for i in range(0, len(packed), 4))


def adapter_for(name: str, obj: Any) -> NamedRng | None:
    """The adapter for a generator of Python, numpy or torch; None if ``obj`` is none."""
    if isinstance(obj, random.Random):
        return NamedRng(name, obj, _get_python, _set_python)
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        if isinstance(obj, numpy.random.Generator):
            return NamedRng(name, obj.bit_generator, _get_numpy, _set_numpy)
        if isinstance(obj, numpy.random.RandomState):
            return NamedRng(name, obj, _get_legacy, _set_legacy)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(obj, torch.Generator):
        return NamedRng(name, obj, _get_torch, _set_torch)
    return None


class NamedRng:
    """One generator that a program made for itself."""

    def __init__(self, name: str, obj: Any, get: Any, set: Any) -> None:
        self.name = name
        self.obj = obj
        self.get = get
        self.set = set

    def capture(self, world: World, deferred: bool) -> Snapshot:
        encoded = _tree.encode(self.get(self.obj), self.name)
        role = "own" if world.size > 1 else "same"
        snapshot = Snapshot(encoded.tree)
        snapshot.add_arrays(encoded.arrays, self.name, role, deferred)
        return snapshot

    def load(self, saved: Saved, world: World) -> Loading:
        tree = saved.tree(world)
        before = self.get(self.obj)
        staged = _state.stage(saved, _tree.arrays_of(tree), world, {})

        def apply() -> None:
            self.set(self.obj, _tree.decode(tree, staged.finish(), self.name))

        return Loading(staged.targets, apply, lambda: self.set(self.obj, before), last=True)


def _get_python(obj: Any) -> Any:
    version, words, gauss = obj.getstate()
    return {"version": version, "words": _pack(words), "gauss": gauss}


def _set_python(obj: Any, state: Any) -> None:
    obj.setstate((state["version"], _unpack(state["words"]), state["gauss"]))


def _get_numpy(obj: Any) -> Any:
    return obj.state


def _set_numpy(obj: Any, state: Any) -> None:
    obj.state = state


def _get_legacy(obj: Any) -> Any:
    return obj.get_state(legacy=False)


def _set_legacy(obj: Any, state: Any) -> None:
    obj.set_state(state)


def _get_torch(obj: Any) -> Any:
    return obj.get_state()


def _set_torch(obj: Any, state: Any) -> None:
    obj.set_state(state)


__all__ = ["GlobalRng", "NamedRng", "adapter_for"]
