"""How much a metric may lose: what --max-drop says, and which way is better."""

import pytest

from torchport.errors import RecipeError
from torchport.recipe.gate import Gate, parse_max_drop


@pytest.mark.parametrize(("given", "value"), [("0.5%", 0.005), ("0.005", 0.005), (" 1 % ", 0.01), ("0", 0.0)])
def test_a_drop_is_in_points_of_the_metric(given, value):
    assert parse_max_drop(given) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("given", ["", "%", "half", "-1%", "nan", "inf"])
def test_what_is_no_drop_is_refused(given):
    with pytest.raises(RecipeError, match=r"--max-drop"):
        parse_max_drop(given)


def test_a_gate_knows_which_way_is_better():
    gate = Gate(max_drop=0.01, goals={"loss": "< 1", "accuracy": ">= 0.9"})
    before = {"loss": 0.5, "accuracy": 0.95}
    assert gate.broken(before, {"loss": 0.4, "accuracy": 0.94}) == []
    assert gate.broken(before, {"loss": 0.51, "accuracy": 0.99}) == []
    (loss,) = gate.broken(before, {"loss": 0.52, "accuracy": 0.99})
    assert "loss is 0.5200, 0.0200 worse than 0.5000" in loss
    (missing,) = gate.broken(before, {"accuracy": 0.95})
    assert "no 'loss'" in missing
    assert gate.broken(before, {"loss": float("nan"), "accuracy": 0.95})
