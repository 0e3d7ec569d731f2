"""Records, such as plans and kernels: they cannot be changed, and files hold them."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike

from eigencache._checks import check_arguments, check_source
from eigencache._files import contents_hash, read_arrays, write_arrays

# Fields that are text, where a record has them.
_TEXTS = ("tap", "features", "normalisation", "model", "method", "scheduler", "pipeline")


@dataclass(frozen=True, eq=False)
class Record:
    """A dataclass of arrays and of values that JSON can hold.

    A subclass checks what is particular to it in `__post_init__`, after that of this class.

    Class attributes:
        FORMAT: what its files state.
        ERROR: what is raised where a field or a file is wrong.
        ARRAYS: the fields that are arrays, or mappings of names to arrays, and their dtypes; None
            keeps the dtype.
        ENCODED: of fields that JSON cannot hold, a function that makes what it can, and its
            inverse.

    Raises:
        PlanError, KernelError: the `ERROR` of the class: a field is of the wrong type.
    """

    FORMAT: ClassVar[str]
    ERROR: ClassVar[type[ValueError]]
    ARRAYS: ClassVar[Mapping[str, DTypeLike]]
    ENCODED: ClassVar[Mapping[str, tuple[Callable, Callable]]] = {}

    def __post_init__(self) -> None:
        for name, value in self._values().items():
            if name in self.ARRAYS:
                object.__setattr__(self, name, _frozen(value, self.ARRAYS[name]))
            elif isinstance(value, Mapping):
                object.__setattr__(self, name, MappingProxyType(dict(value)))
            elif name in _TEXTS and not isinstance(value, str | None):
                raise self.ERROR(f"`{name}` must be text or None, got {value!r}")
        values = self._values()
        check_source(values.get("source", {}), self.ERROR)
        check_arguments(values.get("arguments", {}), self.ERROR)

    def __reduce__(self) -> tuple:
        """Pickle and copy by the arguments, since read-only mappings can be neither."""
        values = self._values()
        plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        return partial(self.__class__, **plain), ()

    @property
    def digest(self) -> str:
        """The SHA-256 of all contents, 64 hexadecimal digits; a file of them states the same."""
        arrays, metadata = self._contents()
        return contents_hash(arrays, metadata | {"format": self.FORMAT})

    def save(self, path: str | os.PathLike) -> None:
        """Write the arrays as safetensors, and the other fields as JSON in its metadata.

        Args:
            path: of the file, which is whole or absent.

        Raises:
            OSError: it cannot be written.
        """
        arrays, metadata = self._contents()
        write_arrays(path, arrays, self.FORMAT, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read what `save` wrote.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: there is no such file.
            PlanError, KernelError: of a plan or a kernel: the file is truncated, holds something
                else, or holds an invalid one.
        """
        arrays, metadata = read_arrays(path, cls.FORMAT, cls.ERROR)
        del metadata["format"]
        try:
            found: dict[str, Any] = {}
            for name, text in metadata.items():
                value = json.loads(text)
                if name in cls.ARRAYS:
                    found[name] = {key: arrays.pop(f"{name}/{key}") for key in value}
                else:
                    found[name] = cls._coding(name)[1](value)
            return cls(**arrays, **found)
        except (
            AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError
        ) as error:  # fmt: skip
            kind = cls.__name__.lower()
            raise cls.ERROR(f"{path}: not a valid {kind}: {error}; make it again") from error

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _contents(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return the arrays and the metadata of a file."""
        arrays: dict[str, np.ndarray] = {}
        metadata = {}
        for name, value in self._values().items():
            if name not in self.ARRAYS:
                metadata[name] = json.dumps(self._coding(name)[0](value), sort_keys=True)
            elif isinstance(value, Mapping):
                metadata[name] = json.dumps(list(value))  # in their order, which arrays lose
                arrays |= {f"{name}/{key}": array for key, array in value.items()}
            elif value is not None:
                arrays[name] = value
        return arrays, metadata

    @classmethod
    def _coding(cls, name: str) -> tuple[Callable, Callable]:
        return cls.ENCODED.get(name, (_plain, lambda value: value))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _frozen(value: Any, dtype: DTypeLike) -> Any:
    """Return an array that cannot be written to, or a mapping of such; None as it is."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return MappingProxyType({name: _frozen(each, dtype) for name, each in value.items()})
    array = np.array(value, dtype)
    array.setflags(write=False)
    return array
