"""Read the tensors of a file written by ``torch.save``, without torch and without running what a pickle may ask for."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import Problem, SpecError

__all__ = ["read_torch_file"]

_STORAGES: dict[str, str] = {
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "BoolStorage": "?",
}


class _Reader(pickle.Unpickler):
    """Knows storages, tensors and plain containers; refuses every other name."""

    def __init__(self, data: bytes, storage: Callable[[str, str], npt.NDArray[Any]]) -> None:
        super().__init__(io.BytesIO(data))
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor")

    def persistent_load(self, pid: Any) -> npt.NDArray[Any]:
        _, kind, key, *_ = pid
        return self._storage(kind, key)


def _tensor(
    storage: npt.NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> npt.NDArray[Any]:
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if offset < 0 or min(stride, default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    steps = tuple(s * storage.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


def read_torch_file(path: Path) -> Any:
    """Return what ``torch.save`` wrote (zip format, since torch 1.6), with numpy arrays in the place of tensors.

    Raises
    ------
    SpecError : not such a file, or one that holds other than tensors, numbers, text and containers of them
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inner = next((n for n in names if n.endswith("/data.pkl")), None)
            if inner is None:
                raise SpecError(Problem(str(path), 0, "", "", "expected a file written by torch.save"))
            folder = inner.removesuffix("data.pkl")

            def storage(kind: str, key: str) -> npt.NDArray[Any]:
                return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype=_STORAGES[kind])

            return _Reader(archive.read(inner), storage).load()
    except FileNotFoundError:
        raise SpecError(Problem(str(path), 0, "", "", "no such file")) from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, ValueError, TypeError, EOFError) as error:
        what = f"expected tensors written by torch.save ({error})"
        raise SpecError(Problem(str(path), 0, "", "", what)) from None
    except OSError as error:
        raise SpecError(Problem(str(path), 0, "", "", f"cannot be read: {error.strerror}")) from None
