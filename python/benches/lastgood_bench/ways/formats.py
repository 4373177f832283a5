"""Other libraries' ways to save and load tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lastgood_bench.live import State
from lastgood_bench.tensors import Flat, Layout, allocate
from lastgood_bench.ways.base import Way


class Safetensors(Way):
    """`safetensors.torch.save_file` and `load_file`. It syncs nothing."""

    name = "safetensors"
    packages = ("safetensors",)
    modules = ("safetensors.torch",)
    picks, slices = True, True

    def save(self, number: int) -> None:
        from safetensors.torch import save_file

        save_file(self.flat(), self.place(number))

    def load(self, number: int, layout: Layout) -> Flat:
        from safetensors.torch import load_file

        return load_file(self.place(number))

    def pick(self, number: int, names: list[str], layout: Layout) -> Flat:
        from safetensors import safe_open

        with safe_open(self.place(number), "pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def rows(self, number: int, name: str, begin: int, end: int, layout: Layout) -> Flat:
        from safetensors import safe_open

        with safe_open(self.place(number), "pt") as file:
            return {name: file.get_slice(name)[begin:end]}


class FastSafetensors(Way):
    """`fastsafetensors.fastsafe_open` without GPUDirect (`nogds=True`), as its documentation says for CPUs. Tensors are
    copied out of its buffer, which goes when it is closed."""

    name = "fastsafetensors"
    packages = ("fastsafetensors",)
    modules = ("fastsafetensors",)
    saved_by = "safetensors"

    def load(self, number: int, layout: Layout) -> Flat:
        from fastsafetensors import SafeTensorsFileLoader

        loader = SafeTensorsFileLoader(None, device="cpu", nogds=True, set_numa=False)
        # It tells safetensors by the name.
        file = self.folder / f"{number:06}.safetensors"
        if not file.exists():
            file.hardlink_to(self.place(number))
        loader.add_filenames({0: [str(file)]})
        try:
            buffer = loader.copy_files_to_device()
            out = {name: buffer.get_tensor(name).clone() for name in loader.get_keys()}
            buffer.close()
        finally:
            loader.close()
        return out


class RunaiStreamer(Way):
    """`SafetensorsStreamer` of Run:ai's Model Streamer, with its default of 16 threads. Its tensors lie in a buffer
    that it fills again, so each is copied to its place, as its guide does."""

    name = "runai streamer"
    packages = ("runai-model-streamer",)
    modules = ("runai_model_streamer",)
    saved_by = "safetensors"
    in_place = True

    def load_into(self, number: int, out: Flat) -> None:
        from runai_model_streamer import SafetensorsStreamer

        with SafetensorsStreamer() as streamer, torch.no_grad():
            streamer.stream_file(str(self.place(number)))
            for name, tensor in streamer.get_tensors():
                out[name].copy_(tensor)


class Orbax(Way):
    """`orbax.checkpoint.Checkpointer` with a `PyTreeCheckpointHandler`: each save is waited for. Arrays are numpy's,
    since the state is torch's. OCDBT, its default, gathers them into few files, and TensorStore syncs those."""

    name = "orbax"
    packages = ("orbax-checkpoint", "tensorstore", "jax")
    modules = ("orbax.checkpoint",)
    syncs = True

    def __init__(self, folder: Path, state: State | None) -> None:
        super().__init__(folder.absolute(), state)
        import orbax.checkpoint as ocp

        self.handler = ocp.PyTreeCheckpointHandler()
        self.checkpointer = self._checkpointer(ocp)

    def _checkpointer(self, ocp: Any) -> Any:
        return ocp.Checkpointer(self.handler)

    def arrays(self) -> dict[str, Any]:
        """The state as numpy's arrays of the same memory; bf16 as numbers of 16 bits."""
        return {k: _array(t) for k, t in self.flat().items()}

    def save(self, number: int) -> None:
        self.checkpointer.save(self.place(number), self.arrays())

    def load(self, number: int, layout: Layout) -> Flat:
        import numpy as np
        import orbax.checkpoint as ocp

        wanted = ocp.RestoreArgs(restore_type=np.ndarray)
        found = self.checkpointer.restore(
            self.place(number), restore_args={name: wanted for name in layout}
        )
        return {name: _tensor(array, layout[name][1]) for name, array in found.items()}

    def load_into(self, number: int, out: Flat) -> None:
        from lastgood_bench.tensors import layout_of

        found = self.load(number, layout_of(out))
        with torch.no_grad():
            for name, tensor in out.items():
                tensor.copy_(found[name])

    def close(self) -> None:
        self.checkpointer.close()


class OrbaxAsync(Orbax):
    """`orbax.checkpoint.AsyncCheckpointer` with its defaults: it copies in the call, and threads write."""

    name = "orbax async"
    behind, in_w3 = True, False

    def _checkpointer(self, ocp: Any) -> Any:
        return ocp.AsyncCheckpointer(self.handler)

    def finish(self) -> None:
        self.checkpointer.wait_until_finished()


def _array(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _tensor(array: Any, dtype: str) -> torch.Tensor:
    # What a library hands out may be read-only, which torch warns of; nothing here writes to it.
    found = torch.from_numpy(array if array.flags.writeable else array.copy())
    return found.view(getattr(torch, dtype)) if dtype == "bfloat16" else found


class Tensorstore(Way):
    """TensorStore's `zarr3` driver with chunks of up to 16 MiB, all writes under way at once, and no compression. It
    syncs the files that it writes (`file_io_sync`, its default)."""

    name = "tensorstore"
    packages = ("tensorstore",)
    modules = ("tensorstore",)
    syncs, picks, slices = True, True, True
    CHUNK = 16 << 20

    def _spec(self, number: int, name: str) -> dict[str, Any]:
        where = {"driver": "file", "path": str(self.place(number) / name)}
        return {"driver": "zarr3", "kvstore": where}

    def save(self, number: int) -> None:
        import tensorstore as ts

        opened = []
        for name, tensor in self.flat().items():
            array = _array(tensor)
            row = array.nbytes // array.shape[0] if array.ndim and array.nbytes else 1
            chunk = list(array.shape)
            if array.ndim:
                chunk[0] = max(1, min(array.shape[0], self.CHUNK // max(row, 1)))
            grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
            spec = self._spec(number, name) | {
                "metadata": {"chunk_grid": grid, "codecs": ["bytes"]}
            }
            made = ts.open(
                spec, create=True, dtype=ts.dtype(array.dtype), shape=array.shape, open=True
            )
            opened.append((made, array))
        writes = [made.result().write(array) for made, array in opened]
        for write in writes:
            write.result()

    def load(self, number: int, layout: Layout) -> Flat:
        return self.pick(number, list(layout), layout)

    def pick(self, number: int, names: list[str], layout: Layout) -> Flat:
        import tensorstore as ts

        opened = {name: ts.open(self._spec(number, name), open=True) for name in names}
        reads = {name: store.result().read() for name, store in opened.items()}
        return {name: _tensor(read.result(), layout[name][1]) for name, read in reads.items()}

    def load_into(self, number: int, out: Flat) -> None:
        Orbax.load_into(self, number, out)  # type: ignore[arg-type]

    def rows(self, number: int, name: str, begin: int, end: int, layout: Layout) -> Flat:
        import tensorstore as ts

        store = ts.open(self._spec(number, name), open=True).result()
        return {name: _tensor(store[begin:end].read().result(), layout[name][1])}


class TorchSnapshot(Way):
    """`torchsnapshot.Snapshot.take`. It syncs nothing."""

    name = "torchsnapshot"
    packages = ("torchsnapshot",)
    modules = ("torchsnapshot",)
    in_place, picks = True, True

    def __init__(self, folder: Path, state: State | None) -> None:
        super().__init__(folder, state)
        self.pending: Any = None

    def _app(self, flat: Flat) -> dict[str, Any]:
        from torchsnapshot import StateDict

        return {"state": StateDict(**flat)}

    def save(self, number: int) -> None:
        from torchsnapshot import Snapshot

        Snapshot.take(str(self.place(number)), self._app(self.flat()))

    def load_into(self, number: int, out: Flat) -> None:
        from torchsnapshot import Snapshot

        Snapshot(str(self.place(number))).restore(self._app(out))

    def pick(self, number: int, names: list[str], layout: Layout) -> Flat:
        from torchsnapshot import Snapshot

        out = allocate({name: layout[name] for name in names})
        snapshot = Snapshot(str(self.place(number)))
        for name, tensor in out.items():
            snapshot.read_object(f"0/state/{name}", obj_out=tensor)
        return out


class TorchSnapshotAsync(TorchSnapshot):
    """`torchsnapshot.Snapshot.async_take`: it copies in the call, and a thread writes."""

    name = "torchsnapshot async"
    behind, in_w3 = True, False

    def save(self, number: int) -> None:
        from torchsnapshot import Snapshot

        self.finish()
        self.pending = Snapshot.async_take(str(self.place(number)), self._app(self.flat()))

    def finish(self) -> None:
        if self.pending is not None:
            self.pending.wait()
            self.pending = None


class NvidiaLocal(Way):
    """Local checkpoints of nvidia-resiliency-ext, which take tensors of CUDA devices alone."""

    name = "nvidia-resiliency-ext"
    packages = ("nvidia-resiliency-ext",)

    @classmethod
    def absent(cls) -> str | None:
        missing = super().absent()
        if missing:
            return missing
        from nvidia_resiliency_ext.checkpointing.local import basic_state_dict

        try:
            basic_state_dict.BasicTensorAwareStateDict({"x": torch.zeros(1)})
        except AssertionError:
            return "BasicTensorAwareStateDict refuses tensors that are not on a CUDA device"
        return None


WAYS: list[type[Way]] = [
    Safetensors,
    FastSafetensors,
    RunaiStreamer,
    Orbax,
    OrbaxAsync,
    Tensorstore,
    TorchSnapshot,
    TorchSnapshotAsync,
    NvidiaLocal,
]
