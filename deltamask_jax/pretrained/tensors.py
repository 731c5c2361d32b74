"""The tensors of one file, safetensors or npz: shapes and types at once, values when they are asked for."""

import contextlib
import dataclasses
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FLOATS = ("float16", "bfloat16", "float32", "float64")
# Stored type -> NumPy's; what is not here (floats of 8 bits and fewer) keeps its name and is never read.
_TYPES = {
    "BOOL": "bool", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
PICKLE = "it is a pickle, which can run code; convert it to safetensors first"
# What converts one, without running what it holds.
_CONVERSION = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file({{k: v.clone().contiguous() for k, v in torch.load('{file}', weights_only=True).items()}}, "
    "'{to}')\""
)
_LONGEST_HEADER = 10_000  # bytes, of an array in an npz; NumPy's own bound on what it evaluates
# First bytes of files that are often taken for a checkpoint.
_STARTS = {
    b"version https://git-lfs": "it is a Git LFS pointer, run `git lfs pull`",
    b"PK\x03\x04": "it is a zip archive, as npz files and torch's pickles are",
    b"\x93NUMPY": "it is one array, as np.save writes; np.savez writes named ones",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), PICKLE),
    b"\x89HDF": "it is an HDF5 file; convert it to safetensors first",
    b"GGUF": "it is a GGUF file; convert it to safetensors first",
    **dict.fromkeys((b"<!", b"<html", b"<HTML", b"<?xml"), "it is a web page or XML"),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file, not read yet.

    Attributes:
        source: the file, and the tensor's name there.
        shape: as stored.
        dtype: NumPy's name of its type, or the file's where NumPy has none.
        read: gives the values.
    """

    source: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def __call__(self) -> np.ndarray:
        """The values.

        Raises:
            ValueError: they are damaged.
        """
        with readable(self.source):
            return np.asarray(self.read())


@contextlib.contextmanager
def readable(source: str) -> Generator[None]:
    """Whatever a library raises about bytes it cannot read becomes one line that names them.

    Raises:
        ValueError: bytes of `source` that cannot be read.
    """
    try:
        yield
    except Exception as error:  # zip, zlib, npy, msgpack and Orbax raise some twenty unrelated types
        raise ValueError(f"{source} cannot be read: {one_line(error)}") from None


def one_line(error: object) -> str:
    """An error in at most 300 characters, all of which can be printed."""
    words = " ".join(str(error).split()) or type(error).__name__
    return printable(words, 300)


def printable(text: str, most: int = 100) -> str:
    """Text of a file, for an error: cut, and what would move the cursor is escaped."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return cut if cut.isprintable() else repr(cut)[1:-1]


def unpickling(path: Path) -> str:
    """What to do with a pickle of tensors."""
    return f"{PICKLE}: {_CONVERSION.format(file=printable(path.name), to='model.safetensors')}"


def guess(path: Path) -> str:
    """What a file that is no checkpoint seems to be, by its first bytes; '' if unknown."""
    if path.is_dir():
        return "it is a folder"
    with path.open("rb") as file:
        start = file.read(24)
    if not start:
        return "it is empty"
    return next((what for magic, what in _STARTS.items() if start.startswith(magic)), "")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor. Half-precision tensors (bfloat16 too) arrive as they are stored.

    Raises:
        ValueError: no safetensors file, or a damaged one.
    """
    try:
        file = safe_open(path, framework="flax")  # numpy alone does not know bfloat16
        _check_names(path)
    except (SafetensorError, OSError, ValueError) as error:
        what = guess(path) if path.exists() else ""
        raise ValueError(f"{path} is no readable safetensors file: {what or one_line(error)}") from None
    tensors = {}
    for key in file.keys():
        about = file.get_slice(key)
        dtype = about.get_dtype()
        tensors[key] = Tensor(
            f"{path}: {printable(key)}",
            tuple(about.get_shape()),
            _TYPES.get(dtype, dtype),
            lambda key=key: file.get_tensor(key),
        )
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a file whole or not at all.

    Args:
        path: of the file; a scratch file stands beside it meanwhile.
        tensors: by name, [...] of any shape and type that safetensors knows.
        metadata: text by name.

    Raises:
        OSError: it cannot be written.
    """
    scratch = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, scratch, metadata=metadata)
        scratch.replace(path)
    except (SafetensorError, OSError) as error:
        scratch.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {one_line(error)}") from None


def _check_names(path: Path) -> None:
    """Refuse a header that names a tensor twice: which of them is meant, every library decides otherwise."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = dict(pairs)
        if len(names) < len(pairs):
            raise ValueError(f"its header names {printable(_repeated(pairs))} twice")
        return names

    with path.open("rb") as file:  # safetensors has checked the header's length
        json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=once)


def _repeated(pairs: list[tuple[str, object]]) -> str:
    return next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Name -> tensor. Of each array only its header is read, so what does not fit is never unpacked.

    Raises:
        ValueError: no npz file, or one with a member that is damaged, encrypted or no array.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is no readable npz file: {guess(path) or one_line(error)}") from None
    tensors = {}
    for member in archive.namelist():
        source = f"{path}: {printable(member)}"
        with readable(source), archive.open(member) as file:
            shape, dtype = _npy_header(file)
        name = member.removesuffix(".npy")
        if name in tensors:
            raise ValueError(f"{path} holds {printable(name)} twice")
        tensors[name] = Tensor(source, shape, dtype, lambda member=member: _npy(archive, member))
    return tensors


def _npy_header(file) -> tuple[tuple[int, ...], str]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    length = file.read(2 if version == (1, 0) else 4)
    if (size := int.from_bytes(length, "little")) > _LONGEST_HEADER:
        raise ValueError(f"a header of {size:,} bytes")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(io.BytesIO(length + file.read(size)))
    return shape, dtype.name


def _npy(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
