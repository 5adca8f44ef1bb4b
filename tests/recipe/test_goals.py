import pytest

from torchport.errors import RecipeError
from torchport.recipe.goals import missed_goals, parse_goal


def test_goals():
    goals = {"accuracy": ">= 0.97", "error": "< 1"}
    assert missed_goals(goals, {"accuracy": 0.97, "error": 0.5, "other": 3.0}) == []
    assert missed_goals(goals, {"accuracy": 0.96, "error": 1.0}) == [
        "accuracy is 0.96, the goal is >= 0.97",
        "error is 1, the goal is < 1",
    ]
    assert "gives no 'error'" in missed_goals(goals, {"accuracy": 1.0})[0]
    assert missed_goals({"a": "> 0"}, {"a": float("nan")})


@pytest.mark.parametrize("goal", ["0.97", "== 1", ">= much", ">= nan", 0.97, ""])
def test_what_is_no_goal(goal):
    with pytest.raises(RecipeError, match="is expected"):
        parse_goal("accuracy", goal)
