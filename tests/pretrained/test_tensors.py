"""Files that are damaged, hostile or no tensors: one line with the file's name, and no memory."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deltamask_jax.pretrained import checkpoints, tensors

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def npy(array=None, shape=None):
    """An npy file; with `shape` one whose header announces more than there is."""
    file = io.BytesIO()
    if shape is None:
        np.save(file, array)
    else:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return file.getvalue()


def encrypted():
    content = bytearray(npz(a_npy=npy(np.zeros(8))))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    return bytes(content)


def damaged_npz():
    content = bytearray(npz(a_npy=npy(np.random.default_rng(0).random(4096))))
    content[20_000:20_030] = bytes(30)
    return bytes(content)


ZIP_OF_TORCH = npz(**{"archive/data.pkl": b"x"})
NAMED = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
TWICE = b"{" + NAMED + b"," + NAMED + b"}"
CASES = {
    # name: (content, what the line says)
    "empty.safetensors": (b"", "it is empty"),
    "cut.safetensors": (safetensors({"a": ONE}, bytes(7)), "not fully covered"),
    "longer.safetensors": (safetensors({"a": ONE}, bytes(9)), "not fully covered"),
    "huge_header.safetensors": (safetensors({}, length=1 << 62), "header too large"),
    "header_past_the_end.safetensors": (safetensors({}, length=99), "invalid header length"),
    "overlap.safetensors": (safetensors({"a": ONE, "b": ONE}, bytes(8)), "invalid offset"),
    "hole.safetensors": (safetensors({"a": ONE | {"data_offsets": [8, 16]}}, bytes(16)), "invalid offset"),
    "outside.safetensors": (
        safetensors({"a": ONE | {"shape": [1 << 40], "data_offsets": [0, 4 << 40]}}, bytes(8)),
        "not fully covered",
    ),
    "overflow.safetensors": (safetensors({"a": ONE | {"shape": [1 << 33, 1 << 33]}}, bytes(8)), "overflow"),
    "negative.safetensors": (safetensors({"a": ONE | {"shape": [-2]}}, bytes(8)), "invalid JSON"),
    "type.safetensors": (safetensors({"a": ONE | {"dtype": "F7"}}, bytes(8)), "unknown variant"),
    "list.safetensors": (safetensors([1]), "invalid JSON"),
    "twice.safetensors": (safetensors(TWICE, bytes(8)), "names a twice"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
    "page.safetensors": (b"<!DOCTYPE html><html>" * 9, "it is a web page"),
    "torch.safetensors": (ZIP_OF_TORCH, "it is a zip archive"),
    "pickle.safetensors": (pickle.dumps({"a": 1}), "it is a pickle"),
    "lines.safetensors": (safetensors({"a\n\x1b[2J": ONE | {"shape": [3]}}, bytes(8)), "no readable"),
    "one_array.npz": (npy(np.zeros(3)), "it is one array"),
    "empty.npz": (b"", "it is empty"),
    "garbage.npz": (b"garbage" * 9, "no readable npz"),
    "cut.npz": (npz(a_npy=npy(np.zeros(9)))[:-30], "no readable npz"),
    "encrypted.npz": (encrypted(), "encrypted"),
    "text.npz": (npz(**{"README": b"hello there"}), "README cannot be read"),
    "damaged_header.npz": (npz(a_npy=b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"), "a.npy cannot be read"),
    "twice.npz": (npz(a=npy(np.zeros(3)), a_npy=npy(np.ones(3))), "holds a twice"),
    "long_header.npz": (
        npz(a_npy=b"\x93NUMPY\2\0" + struct.pack("<I", 30_000_000) + bytes(30_000_000)),
        "a.npy cannot be read: a header of 30,000,000 bytes",
    ),
    "weights.bin": (b"", "it is a pickle"),
    "weights.pt": (ZIP_OF_TORCH, "convert it to safetensors"),
    "weights.ckpt": (pickle.dumps({}), "convert it to safetensors"),
    "empty.msgpack": (b"", "it is empty"),
    "pickle.msgpack": (pickle.dumps({"a": 1}), "it is a pickle"),
    "no_suffix": (ZIP_OF_TORCH, "it is a zip archive"),
    "garbage.msgpack": (b"\x82\xa1a\xc1" * 9, "cannot be read"),
    "announces.msgpack": (b"\xdf\xff\xff\xff\xff" * 9, "cannot be read"),
    "deep.msgpack": (b"\x81\xa1a" * 5000, "cannot be read"),
    "model.gguf": (b"GGUF\x03\0\0\0", "GGUF"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_unreadable_file_is_refused_in_one_line(name, tmp_path):
    content, reason = CASES[name]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason) as error:
        checkpoints.read(str(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    message = str(error.value)
    assert name in message and message.isprintable() and len(message) < 500


@pytest.mark.parametrize(
    "name, content",
    {
        "damaged.npz": damaged_npz(),
        "objects.npz": npz(a_npy=npy(np.array([{}], object))),
        "announces.npz": npz(a_npy=npy(shape=(1 << 45,))),
        "eight_bits.safetensors": safetensors({"a": ONE | {"dtype": "F8_E4M3", "shape": [8]}}, bytes(8)),
        "nothing_of_much.safetensors": safetensors(
            {"a": ONE | {"shape": [0, 1 << 62], "data_offsets": [0, 0]}}
        ),
    }.items(),
)
def test_what_only_its_values_show_is_refused_when_they_are_read(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    found = checkpoints.read(str(tmp_path / name)).tensors["a"]
    with pytest.raises(ValueError, match=f"{name}: a.* cannot be read") as error:
        found()
    assert str(error.value).isprintable()


def test_shapes_and_types_are_known_before_anything_is_read(tmp_path):
    stored = {
        "a": np.ones((2, 3), ml_dtypes.bfloat16),
        "b": np.ones(4, np.float16),
        "c": np.ones((), np.int8),
    }
    save_file(stored, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", a=np.ones((2, 3)), b=np.ones(4, np.float16), c=np.int8(1))
    for found in (
        tensors.read_safetensors(tmp_path / "x.safetensors"),
        tensors.read_npz(tmp_path / "x.npz"),
    ):
        assert {name: tensor.shape for name, tensor in found.items()} == {"a": (2, 3), "b": (4,), "c": ()}
        assert found["b"].dtype == "float16" and found["c"].dtype == "int8"
        for tensor in found.values():
            array = tensor()
            assert (array.shape, array.dtype.name, array.sum()) == (tensor.shape, tensor.dtype, array.size)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["npz", "safetensors", "msgpack"]),
    at=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_any_changed_byte_is_read_or_refused_in_one_line(kind, at, flip, tmp_path):
    content = {
        "npz": npz(a_npy=npy(np.arange(50.0)), b_npy=npy(np.zeros(3))),
        "safetensors": safetensors({"a": ONE}, bytes(8)),
        "msgpack": b"\x81\xa6params\x81\xa1a\xcb?\xf0\0\0\0\0\0\0",
    }[kind]
    changed = bytearray(content)
    changed[int(at * len(changed))] ^= flip
    (tmp_path / f"x.{kind}").write_bytes(changed)
    try:
        for tensor in checkpoints.read(str(tmp_path / f"x.{kind}")).tensors.values():
            tensor()
    except ValueError as error:
        assert f"x.{kind}" in str(error) and str(error).isprintable()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(OSError, match="x.safetensors cannot be written"):
        tensors.write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(2)}, {})
    with pytest.raises(OSError, match="cannot be written"):
        tensors.write_safetensors(tmp_path / "none" / "y.safetensors", {"a": np.zeros(2)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
