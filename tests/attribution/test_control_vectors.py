"""Control vectors in the format of llama.cpp, read back with the library of the format."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from attribution.patching.control_vectors import read_control_vector, write_control_vector
from evidence.errors import InputError


def test_the_file_holds_what_llama_cpp_reads(tmp_path):
    path = tmp_path / "vector.gguf"
    vectors = {"resid.3": torch.randn(16, dtype=torch.float64), "resid.1": np.arange(16)}
    write_control_vector(path, vectors, model_hint="llama")
    read = GGUFReader(path)
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    assert {t.name: t.tensor_type.name for t in read.tensors} == {
        "direction.1": "F32",
        "direction.3": "F32",
    }
    back = read_control_vector(path)
    assert list(back) == ["resid.1", "resid.3"]
    assert torch.equal(back["resid.3"], torch.as_tensor(vectors["resid.3"]).float())
    assert torch.equal(back["resid.1"], torch.arange(16).float())


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        ({"resid.0": torch.ones(4)}, "knows no direction for block 0"),
        ({"mlp.1": torch.ones(4)}, "no place for mlp.1"),
        ({"resid.1": torch.ones(4), "resid.2": torch.ones(5)}, "have one width"),
        ({"resid.1": torch.ones(2, 4)}, "not one vector"),
        ({"resid.1": torch.full((4,), torch.nan)}, "not finite"),
        ({"resid.1": np.full(4, 1e300)}, "not finite"),
        ({}, "no vectors"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, vectors, reason):
    path = tmp_path / "vector.gguf"
    with pytest.raises(InputError, match=reason):
        write_control_vector(path, vectors)
    assert not path.exists()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "vector.gguf"
    with pytest.raises(InputError, match="there is no control vector"):
        read_control_vector(path)
    path.write_bytes(b"GGUF nothing")
    with pytest.raises(InputError):
        read_control_vector(path)
    for architecture, name, values, reason in (
        ("llama", "direction.1", np.ones(4, np.float32), "is no control vector"),
        ("controlvector", "blk.1", np.ones(4, np.float32), "is no control vector"),
        ("controlvector", "direction.0", np.ones(4, np.float32), "no direction for block 0"),
        ("controlvector", "direction.1", np.ones(4, np.float16), "no vector of float32"),
        ("controlvector", "direction.1", np.ones((2, 4), np.float32), "no vector of float32"),
    ):
        writer = GGUFWriter(path, architecture)
        writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(InputError, match=reason):
            read_control_vector(path)
    write_control_vector(path, {"resid.1": torch.ones(64)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError):
        read_control_vector(path)
