"""Arrays as plain memory: where they lie, how large they are, and what their elements are called.

The only place that asks arrays for addresses. Element types have the names of safetensors; bytes are row-major and
little-endian.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any, NamedTuple

from lastgood._lastgood import Incompatible, Invalid

#: Names of element types, as torch spells them after ``torch.``.
TORCH_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "complex64": "C64",
}

#: The same for numpy, with the names that ml_dtypes adds.
NUMPY_DTYPES = {
    **TORCH_DTYPES,
    "float8_e4m3": "F8_E4M3",
}


class Memory(NamedTuple):
    """``bytes`` bytes at ``address``, which ``owner`` keeps alive."""

    address: int
    bytes: int
    owner: Any


def need(name: str) -> Any:
    """The framework ``name``, of which a checkpoint holds values.

    Raises:
        Incompatible: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Incompatible(
            f"the checkpoint holds values of {name}, which is not installed: pip install {name}"
        ) from None


def is_torch(value: Any) -> bool:
    """True for a torch tensor; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_numpy(value: Any) -> bool:
    """True for a numpy array or scalar."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def is_jax(value: Any) -> bool:
    """True for a jax array."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


def torch_dtype_name(dtype: Any, path: str) -> str:
    """The stored name of a torch dtype.

    Raises:
        Invalid: if there is none.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in TORCH_DTYPES:
        raise Invalid(f"{path}: tensors of {dtype} cannot be stored; store a view of another dtype")
    return TORCH_DTYPES[name]


def torch_dtype(name: str) -> Any:
    """The torch dtype that is stored under ``name``."""
    import torch

    for ours, theirs in TORCH_DTYPES.items():
        if theirs == name and hasattr(torch, ours):
            return getattr(torch, ours)
    raise Incompatible(f"this torch has no dtype for {name}")


def numpy_dtype_name(dtype: Any, path: str) -> str:
    """The stored name of a numpy dtype.

    Raises:
        Invalid: if there is none.
    """
    if dtype.name not in NUMPY_DTYPES:
        raise Invalid(
            f"{path}: numpy arrays of {dtype} cannot be stored; keep numbers, or a state_dict of them"
        )
    return NUMPY_DTYPES[dtype.name]


def numpy_dtype(name: str) -> Any:
    """The numpy dtype that is stored under ``name``."""
    import numpy

    for ours, theirs in NUMPY_DTYPES.items():
        if theirs != name:
            continue
        try:
            return numpy.dtype(ours)
        except TypeError:
            return numpy.dtype(getattr(need("ml_dtypes"), ours))
    raise Incompatible(f"numpy has no dtype for {name}")


def numpy_dtype_called(name: str) -> Any:
    """The dtype that numpy or ml_dtypes calls ``name``.

    Raises:
        Incompatible: if there is none.
    """
    import numpy

    try:
        return numpy.dtype(name)
    except TypeError:
        ml_dtypes = need("ml_dtypes")
    if not hasattr(ml_dtypes, name):
        raise Incompatible(f"this ml_dtypes has no dtype {name!r}; install a newer one")
    return numpy.dtype(getattr(ml_dtypes, name))


def told(array: Any) -> dict[str, Any]:
    """What must be told of an array beside its stored dtype, so that the same comes back."""
    if is_jax(array):
        from lastgood import jax as lg_jax

        return lg_jax.node_of(array)
    if is_torch(array) and str(array.dtype) == "torch.complex128":
        # It is stored as two float64, in a dimension after the others.
        return {"dtype": "complex128"}
    if is_numpy(array) and array.dtype.name in NUMPY_DTYPES:
        # Two dtypes of ml_dtypes have one stored name.
        same = numpy_dtype(NUMPY_DTYPES[array.dtype.name]) == array.dtype
        return {} if same or array.dtype.byteorder == ">" else {"dtype": array.dtype.name}
    return {}


def buffer_of(taken: Any) -> Any:
    """The memory that was taken from what a crash has left, as a buffer that keeps it."""
    buffer = (ctypes.c_char * taken.bytes).from_address(taken.address)
    buffer._taken = taken
    return buffer


def of_torch(tensor: Any) -> Memory:
    """The memory of a contiguous tensor on the CPU."""
    return Memory(tensor.data_ptr(), tensor.nbytes, tensor)


def of_numpy(array: Any) -> Memory:
    """The memory of a C-contiguous array."""
    address = array.__array_interface__["data"][0] if array.nbytes else 0
    return Memory(address, array.nbytes, array)


def plain_torch(tensor: Any, path: str, copy: bool) -> Any:
    """``tensor`` as a contiguous one on the CPU, outside of autograd; its own memory if it can be and no ``copy``
    is asked for.

    Raises:
        Invalid: for a layout that has no plain memory (sparse, quantized, meta), and a lazy parameter that has no
            shape yet.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        what = "nested" if tensor.is_nested else str(tensor.layout)
        raise Invalid(f"{path}: a {what} tensor has no plain memory; store a dense one")
    if tensor.device.type == "meta":
        raise Invalid(f"{path}: a meta tensor has no values; give it memory first, by to_empty()")
    try:
        plain = tensor.detach()
    except ValueError:
        raise Invalid(
            f"{path}: a lazy parameter has no shape before the first batch; call the module once before"
        ) from None
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    plain = plain.to("cpu").contiguous()
    if plain.data_ptr() == 0 and plain.nbytes:
        raise Invalid(
            f"{path}: a {type(tensor).__name__} has no memory of its own; store the tensors that it is made of"
        )
    if copy and plain.data_ptr() == tensor.data_ptr():
        plain = plain.clone()
    return plain


def plain_numpy(array: Any, path: str, copy: bool) -> Any:
    """``array`` as a C-contiguous one in native byte order; its own memory if it can be and no ``copy`` is asked
    for.

    Raises:
        Invalid: for a class of arrays that holds more than its elements, such as a mask.
    """
    import numpy

    if isinstance(array, numpy.ndarray) and type(array) not in (numpy.ndarray, numpy.memmap):
        raise Invalid(
            f"{path} is a {type(array).__module__}.{type(array).__qualname__}, of which only the elements would be "
            "stored; store plain arrays of everything that it holds"
        )
    plain = numpy.asarray(array)
    if plain.dtype.byteorder == ">":
        plain = plain.astype(plain.dtype.newbyteorder("="))
    # ascontiguousarray would give an array without dimensions one.
    plain = plain if plain.flags.c_contiguous else plain.copy()
    return plain.copy() if copy and plain is array else plain
