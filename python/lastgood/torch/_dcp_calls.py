"""`save`, `async_save` and `load` of torch.distributed.checkpoint, with errors that ``except Exception`` sees."""

from __future__ import annotations

import concurrent.futures
from typing import Any, NoReturn

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from lastgood import _world
from lastgood._lastgood import LastgoodError, Unavailable
from lastgood.torch._dcp import Writer
from lastgood.torch._dcp_read import Reader, from_assertion


def _raise(error: CheckpointException) -> NoReturn:
    """Raises what the lowest failed rank failed with, which is an `Exception`."""
    failures: dict[int, BaseException] = {
        rank: from_assertion(failure[0]) for rank, failure in error.failures.items()
    }
    all_failed: list[tuple[int, BaseException]] = sorted(failures.items(), key=lambda item: item[0])
    ours = [(r, f) for r, f in all_failed if isinstance(f, LastgoodError)]
    rank, first = (ours or all_failed or [(-1, error)])[0]
    is_own = rank == _world.find_world().rank
    if isinstance(first, Exception) and len(failures) == 1 and is_own:
        raise first from error
    kind = type(first) if isinstance(first, LastgoodError) else Unavailable
    others = sorted(set(failures) - {rank})
    raise kind(
        f"rank {rank}: {first}" + (f" (and ranks {others} failed)" if others else "")
    ) from error


def save(state_dict: dict[str, Any], writer: Writer, **options: Any) -> Any:
    """`torch.distributed.checkpoint.save` through ``writer``, whose errors are `lg.LastgoodError`s.

    Args:
        state_dict: as for `dcp.save`; ``options`` too, such as ``checkpoint_id``.

    Raises:
        LastgoodError: what this rank, or another one, failed with.

    Example:
        >>> import lastgood as lg, tempfile, torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> writer = lg.torch.Writer(tempfile.mkdtemp())
        >>> _ = lg.torch.save({"w": torch.ones(2)}, writer, checkpoint_id=1)
    """
    try:
        return dcp.save(state_dict, storage_writer=writer, **options)
    except CheckpointException as error:
        _raise(error)


def async_save(
    state_dict: dict[str, Any], writer: Writer, **options: Any
) -> concurrent.futures.Future[Any]:
    """`torch.distributed.checkpoint.async_save` through ``writer``. The future raises `lg.LastgoodError`s, and a
    failure that nobody asks it for warns at the next save and is told at exit, also of a process that saves.

    Raises:
        LastgoodError: if the save cannot begin.

    Example:
        >>> import lastgood as lg, tempfile, torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> writer = lg.torch.Writer(tempfile.mkdtemp())
        >>> future = lg.torch.async_save({"w": torch.ones(2)}, writer, checkpoint_id=1)
        >>> _ = future.result()
    """
    inner: Any = dcp.async_save(state_dict, storage_writer=writer, **options)
    inner = getattr(inner, "upload_completion", inner)
    outer: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def done(found: Any) -> None:
        error = found.exception()
        if error is None:
            outer.set_result(found.result())
            return
        if isinstance(error, CheckpointException):
            try:
                _raise(error)
            except Exception as unwrapped:
                error = unwrapped
        writer.note_failure(f"an asynchronous save failed: {error}")
        outer.set_exception(error)

    inner.add_done_callback(done)
    return outer


def load(state_dict: dict[str, Any], reader: Reader, **options: Any) -> None:
    """`torch.distributed.checkpoint.load` through ``reader``, in place, whose errors are `lg.LastgoodError`s.

    Raises:
        LastgoodError: what this rank, or another one, failed with.

    Example:
        >>> import lastgood as lg, tempfile, torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> store = tempfile.mkdtemp()
        >>> _ = lg.torch.save({"w": torch.ones(2)}, lg.torch.Writer(store), checkpoint_id=1)
        >>> state = {"w": torch.zeros(2)}
        >>> lg.torch.load(state, lg.torch.Reader(store))
        >>> state["w"]
        tensor([1., 1.])
    """
    try:
        dcp.load(state_dict, storage_reader=reader, **options)
    except AssertionError as error:
        told = reader.refused or from_assertion(error)
        if told is error:
            raise
        raise told from error
    except CheckpointException as error:
        if reader.refused is not None:
            raise reader.refused from error
        _raise(error)
