"""A recipe's parameters, from Python and from the command line."""

import pytest

from torchport.errors import MissingParameter, RecipeError
from torchport.recipe.loading import load_recipe
from torchport.recipe.parameters import from_arguments

CONFIGURED = (
    "def build(self):",
    """def configure(self, *, width: int = 3, rate: float = 0.5, quick: bool = False, words: list[str] = [],
                  where: "Path | None" = None):
        self.width, self.words, self.where = width, words, where

    def build(self):""",
)
IMPORT = ("import torch\n", "import torch\nfrom pathlib import Path\n")


def test_values_are_converted_by_their_annotations(write_recipe):
    path = write_recipe(CONFIGURED, IMPORT)
    given = {"width": "4", "rate": "1e-3", "quick": ["true"], "words": ["a", "b"], "where": "x/y"}
    recipe = load_recipe(path, given)
    expected = {"width": 4, "rate": 0.001, "quick": True, "words": ["a", "b"], "where": "x/y"}
    assert recipe.parameters == expected
    assert str(recipe.where) == "x/y"
    assert load_recipe(path).parameters["width"] == 3


def test_parameters_are_among_the_sources(write_recipe):
    path = write_recipe(CONFIGURED, IMPORT)
    one, other = load_recipe(path), load_recipe(path, {"width": 4})
    assert one.sources != other.sources
    assert load_recipe(path, {"width": 3}).sources == one.sources


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"widht": "3"}, "no parameter 'widht'.*did you mean 'width'"),
        ({"width": "three"}, "--width 'three': int is expected"),
        ({"width": 2.5}, "int is expected"),
        ({"width": ["1", "2"]}, "was given 2 times"),
        ({"quick": "perhaps"}, "--quick 'perhaps': bool"),
    ],
)
def test_wrong_parameters(write_recipe, given, reason):
    with pytest.raises(RecipeError, match=reason):
        load_recipe(write_recipe(CONFIGURED, IMPORT), given)


def test_a_recipe_without_parameters_says_so(write_recipe):
    with pytest.raises(RecipeError, match="no parameter 'epochs': it takes none"):
        load_recipe(write_recipe(), {"epochs": 3})


def test_what_is_missing_is_named(write_recipe):
    path = write_recipe(
        ("def build(self):", "def configure(self, *, a: int, b_c: str): pass\n\n    def build(self):")
    )
    with pytest.raises(MissingParameter, match="needs --a, --b-c"):
        load_recipe(path)


def test_a_parameter_of_an_unknown_type(write_recipe):
    path = write_recipe(
        ("def build(self):", "def configure(self, *, a: dict = 1): pass\n\n    def build(self):")
    )
    with pytest.raises(RecipeError, match="one of the types"):
        load_recipe(path)


def test_arguments():
    assert from_arguments(["--epochs", "2", "--input=a:b", "--input", "c", "--flag"]) == {
        "epochs": ["2"],
        "input": ["a:b", "c"],
        "flag": ["true"],
    }
    assert from_arguments(["--low", "-1"]) == {"low": ["-1"]}
    with pytest.raises(RecipeError, match="stray"):
        from_arguments(["stray"], ["--seed"])
