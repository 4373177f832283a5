"""PyTorch: modules, optimizers and tensors as components of a run, and `torch.distributed.checkpoint` through lastgood.

`Writer` and `Reader` are storage for `torch.distributed.checkpoint`; `save`, `async_save` and `load` call it and raise
errors that ``except Exception`` sees; `StorageConfig` is storage for `torch_checkpointing`. `ordered_all_reduce` and
its like sum over ranks with the same bytes on any number of processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch as _torch  # noqa: F401  (without it, `lg.torch` says in one sentence what to install)

if TYPE_CHECKING:
    from lastgood.torch._dcp import Writer
    from lastgood.torch._dcp_calls import async_save, load, save
    from lastgood.torch._dcp_read import Reader
    from lastgood.torch._ordered import (
        LogicalRanks,
        logical_ranks,
        ordered_all_reduce,
        ordered_all_reduce_grads,
        ordered_hook,
    )
    from lastgood.torch._storage import StorageConfig

__all__ = [
    "LogicalRanks",
    "Reader",
    "StorageConfig",
    "Writer",
    "async_save",
    "load",
    "logical_ranks",
    "ordered_all_reduce",
    "ordered_all_reduce_grads",
    "ordered_hook",
    "save",
]

#: What imports torch.distributed.checkpoint or more is imported when it is asked for.
_LAZY = {
    "LogicalRanks": "_ordered",
    "Reader": "_dcp_read",
    "StorageConfig": "_storage",
    "Writer": "_dcp",
    "async_save": "_dcp_calls",
    "load": "_dcp_calls",
    "logical_ranks": "_ordered",
    "ordered_all_reduce": "_ordered",
    "ordered_all_reduce_grads": "_ordered",
    "ordered_hook": "_ordered",
    "save": "_dcp_calls",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lastgood.torch' has no attribute {name!r}")
    import importlib

    from lastgood._lastgood import Invalid

    try:
        return getattr(importlib.import_module(f"lastgood.torch.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing == "lastgood":
            raise
        package = missing.replace("_", "-")
        raise Invalid(
            f"lastgood.torch.{name} needs {missing}, which is not installed: pip install {package}"
        ) from None


def __dir__() -> list[str]:
    return sorted(__all__)
