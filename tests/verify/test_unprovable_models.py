"""Models of which parity can prove nothing, or less, and requests and samples that do not fit them."""

import pytest

from tests.artifact_edits import change_onnx, scale_weight
from tests.export.test_export import BUILD_NET, module
from torchport.verify.verifying import verify


def test_a_model_that_mixes_the_rows_of_a_batch_fails(built):
    recipe, folder = built(module("        return self.inner(x - x.mean(0, keepdim=True))"), BUILD_NET)
    assert any("does forward mix rows?" in failure for failure in verify(recipe, folder).failures)


def test_rows_that_mix_are_seen_with_samples_of_one_row(built):
    recipe, folder = built(
        module("        return self.inner(x - x.mean(0, keepdim=True))"),
        BUILD_NET,
        ("standard_normal((4, 3))", "standard_normal((1, 3))"),
    )
    assert any("does forward mix rows?" in failure for failure in verify(recipe, folder).failures)


def test_a_model_that_cannot_run_in_float64_says_so_and_is_still_proven(built):
    recipe, folder = built(
        module("        return self.inner(x.to(torch.float32)) + torch.ones(2, dtype=torch.float32)"),
        BUILD_NET,
    )
    result = verify(recipe, folder)
    assert result.failures == []
    assert result.certificate["reference"]["main"].startswith("float32: the model does not run in float64")
    change_onnx(folder, scale_weight("inner.weight", 1.001))
    assert verify(recipe, folder).failures


def test_samples_that_do_not_fit_are_named(built):
    from torchport.errors import RecipeError

    with pytest.raises(RecipeError, match="sample 0 of graph 'main'.*expected float32"):
        built(("standard_normal((4, 3))", "standard_normal((4, 5))"))


def test_a_model_that_answers_otherwise_each_time_fails(built):
    recipe, folder = built(
        module("        return self.inner(torch.nn.functional.dropout(x, 0.5, training=True))"), BUILD_NET
    )
    assert any("another each time" in failure for failure in verify(recipe, folder).failures)


def test_a_model_that_gives_nan_for_real_inputs_fails(built):
    recipe, folder = built(module("        return torch.log(-self.inner(x).abs() - 1)"), BUILD_NET)
    assert any("holds NaN, or nothing finite" in failure for failure in verify(recipe, folder).failures)


def test_a_model_of_rounding_errors_alone_fails(built):
    recipe, folder = built(module("        return (self.inner(x) + 1e9) - 1e9"), BUILD_NET)
    assert any("nothing can be proven" in failure for failure in verify(recipe, folder).failures)


def test_a_model_that_fails_at_a_size_says_which(built):
    from torchport.errors import RecipeError

    recipe, folder = built(
        module(
            """        if x.size(0) > 40:
            raise ValueError("too many")
        return self.inner(x)"""
        ),
        BUILD_NET,
        ("    inputs =", '    backends = ships = ("torchscript",)\n    torchscript = "script"\n    inputs ='),
    )
    with pytest.raises(RecipeError, match=r"fails on 'batch=64': ValueError: too many: bound the dimension"):
        verify(recipe, folder)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("return [Request(", "return [] and [Request(", "at least one Request"),
        (
            "return [Request(",
            "1 / 0\n        return [Request(",
            r"requests: ZeroDivisionError",
        ),
        ("np.array([[1, 2, 3]], np.float32)", "[[1, 2, 3]]", "tensors are to be numpy arrays"),
        ('yield {"x":', 'raise SystemExit(0)\n        yield {"x":', "samples: SystemExit"),
    ],
)
def test_wrong_samples_and_requests_are_named(built, old, new, reason):
    from torchport.errors import RecipeError

    with pytest.raises(RecipeError, match=reason):
        verify(*built((old, new)))
