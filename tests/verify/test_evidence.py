"""What an archive is proven again by: real inputs with the trained model's answers, whole or not at all."""

import numpy as np
import pytest

from torchport import Request
from torchport.errors import ArchiveError
from torchport.verify.evidence import FILE, Evidence, read_evidence
from torchport.verify.verifying import verify
from torchport_runtime import write_arrays


def npz(index):
    return write_arrays({"index": np.frombuffer(index, np.uint8)}, "npz")


def test_evidence_is_real_inputs_with_the_trained_models_answers(built):
    recipe, folder = built()
    certificate = verify(recipe, folder).certificate
    evidence = read_evidence(folder.evidence)
    assert certificate["evidence"].keys() == {FILE}
    first = evidence.cases[0]
    assert first.name == "sample 0"
    (sample,) = recipe.samples()
    np.testing.assert_array_equal(first.inputs["x"], sample["x"])
    assert first.expected["y"].dtype == np.float64
    assert {"seed 1", "large", "denormal", "batch=64"} <= {case.name for case in evidence.cases}
    assert all(len(case.inputs["x"]) <= 8 for case in evidence.cases)
    (request,) = evidence.requests
    np.testing.assert_allclose(request.answer, evidence_answer(folder, request.body), rtol=1e-6)  # Float32.


def evidence_answer(folder, row):
    import torch

    weights = torch.load(folder.weights, weights_only=True)
    return (torch.tensor(row) @ weights["weight"].T + weights["bias"]).tolist()


def test_evidence_that_is_lost_is_made_again(built):
    recipe, folder = built()
    verify(recipe, folder)
    before = folder.evidence.read_bytes()
    assert not verify(recipe, folder).done
    folder.evidence.unlink()
    assert verify(recipe, folder).done
    assert folder.evidence.read_bytes() == before


def test_bytes_and_json_come_back_as_they_were(tmp_path):
    evidence = Evidence("onnxruntime")
    evidence.add_request(Request(body=b"\x00\xff", params={"k": "3"}), b"\x89PNG")
    evidence.add_request(Request(json={"x": [1.5]}), {"label": "é", "scores": [1, 2.5]})
    path = tmp_path / FILE
    path.write_bytes(evidence.to_bytes())
    assert read_evidence(path) == evidence


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"no zip",
        npz(b"[]"),
        npz(b'{"format": 9}'),
        npz(b'{"format": 1, "cases": [{"graph": "main", "name": "a", "inputs": [], "expected": {}}]}'),
    ],
)
def test_damaged_evidence_is_an_error(tmp_path, content):
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"evidence\.npz"):
        read_evidence(path)
