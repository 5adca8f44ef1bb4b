import sys

import pytest

from torchport.errors import MissingParameter, RecipeError
from torchport.recipe.loading import find_handler, load_recipe, recipe_paths


def test_a_good_recipe_loads(write_recipe):
    recipe = load_recipe(write_recipe())
    assert (recipe.name, recipe.version) == ("tiny", "1.0")
    assert list(recipe.sources) == ["tiny_recipe.py"]
    assert recipe.signatures()["main"].batch_dim == "batch"


def test_the_shipped_recipes_load():
    assert {"linear", "digits_resnet18"} <= set(recipe_paths())
    for name in recipe_paths():
        try:
            assert load_recipe(name).name == name
        except MissingParameter as err:
            assert (name, err.options) in (
                ("hub", ["--repo", "--entry", "--input"]),
                ("pretrained", ["--model", "--input"]),
            )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def build(self):", "def make(self):", r"method build\(self\) is missing"),
        ("def samples(self):", "def sample(self):", "did you mean 'samples'"),
        ("def requests(self):", "def other(self):", r"method requests\(self\) is missing"),
        ('"float32", ("batch", 3)', '"flaot32", ("batch", 3)', r"tiny_recipe.py:9: .*did you mean 'float32'"),
        ('"tiny", "1.0"', '"tiny", "one"', "version 'one'"),
        ('"tiny", "1.0"', '"tiny", "1-2"', "version '1-2': no '-'"),
        ('"tiny", "1.0"', '"tiny model", "1.0"', "name 'tiny model'"),
        ('"tiny", "1.0"', '"torch", "1.0"', "'torch' is the name of an installed package"),
        ("inputs =", "input =", "did you mean 'inputs'"),
        ("outputs =", "outputs = 3 or", "outputs: got 3"),
        ("outputs =", "goals = {'y': 'high'}\n    outputs =", "goals.'y'. = 'high': such as '>= 0.97'"),
        ("outputs =", "optional_backends = ('onnxruntime',)\n    outputs =", "none of ships"),
        ("import torch\n", "import torhc\n", "tiny_recipe.py:3: import: ModuleNotFoundError"),
        ("class Tiny(Recipe):", "class Tiny(Recipe)", "tiny_recipe.py:7: syntax error"),
        ("class Tiny(Recipe):", "class Tiny:", "one class that subclasses Recipe is expected, found none"),
        ("class Tiny(Recipe):", "class Other(Recipe): pass\n\nclass Tiny(Recipe):", "found Other, Tiny"),
        (
            'handler = "tiny", "1.0", "regressor"',
            'handler = "tiny", "1.0", "regressor"\n    ships = ("onnx",)',
            "ships: 'onnx'",
        ),
    ],
)
def test_breaches_of_the_contract(write_recipe, old, new, reason):
    with pytest.raises(RecipeError, match=reason):
        load_recipe(write_recipe((old, new)))


def test_a_file_that_is_here_is_pointed_at(write_recipe, monkeypatch):
    monkeypatch.chdir(write_recipe().parent)
    with pytest.raises(RecipeError, match=r"but tiny_recipe\.py is here"):
        load_recipe("tiny_recipe")


def test_a_short_name_of_the_recipes_own_is_no_mistake(write_recipe):
    own = "def ask(self):\n        return 1\n\n    def samples(self):"
    assert load_recipe(write_recipe(("def samples(self):", own))).ask() == 1


def test_a_file_named_like_a_package(write_recipe):
    with pytest.raises(RecipeError, match="numpy_model"):
        load_recipe(write_recipe(name="numpy"))


def test_no_such_recipe():
    with pytest.raises(RecipeError, match="did you mean 'linear'"):
        load_recipe("liner")
    with pytest.raises(RecipeError, match="torchport init"):
        load_recipe("no/such/file.py")


def test_a_handler_that_is_nowhere(write_recipe):
    recipe = load_recipe(write_recipe(('"regressor"', '"regresor"')))
    with pytest.raises(RecipeError, match="did you mean 'regressor'"):
        find_handler(recipe)


def test_a_handler_beside_the_recipe_wins(write_recipe):
    path = write_recipe()
    (path.parent / "regressor.py").write_text("")
    assert find_handler(load_recipe(path)).parent == path.parent


def test_what_a_recipe_imports_from_its_folder_is_among_its_sources(write_recipe):
    path = write_recipe(("import torch\n", "import torch\nimport tiny_parts_of_a_recipe\n"))
    (path.parent / "tiny_parts_of_a_recipe.py").write_text("WIDTH = 3\n")
    assert set(load_recipe(path).sources) == {"tiny_recipe.py", "tiny_parts_of_a_recipe.py"}
    # And again, when it has been imported already.
    assert set(load_recipe(path).sources) == {"tiny_recipe.py", "tiny_parts_of_a_recipe.py"}


def test_a_virtual_environment_beside_the_recipe_is_none_of_its_sources(write_recipe, monkeypatch):
    """What is installed there is imported from below the recipe's folder, compiled extensions included."""
    path = write_recipe(("import numpy as np", "import numpy as np\nimport installed_beside"))
    packages = path.parent / ".venv" / "lib" / "python3" / "site-packages"
    (packages / "installed_beside").mkdir(parents=True)
    (packages / "installed_beside" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.delitem(sys.modules, "installed_beside", raising=False)
    assert set(load_recipe(path).sources) == {path.name}


def test_a_change_within_the_second_that_keeps_the_size_is_seen(write_recipe):
    for version in ("1.0", "1.1", "1.2"):
        assert load_recipe(write_recipe(('"1.0"', f'"{version}"'))).version == version


def test_files_of_one_name_beside_two_recipes(write_recipe, tmp_path):
    recipes = []
    for width in (3, 4):
        path = write_recipe(
            ("import torch\n", "import torch\nimport tiny_parts\n"),
            ("return nn.Linear(3, 2)", "return nn.Linear(tiny_parts.WIDTH, 2)"),
        )
        folder = tmp_path / f"folder_{width}"
        path.parent.rename(folder)
        (folder / "tiny_parts.py").write_text(f"WIDTH = {width}\n")
        recipes.append(load_recipe(folder / path.name))
    assert [recipe.build().in_features for recipe in recipes] == [3, 4]
    assert [set(recipe.sources) for recipe in recipes] == [{"tiny_recipe.py", "tiny_parts.py"}] * 2


def test_a_package_beside_the_recipe_with_relative_imports(write_recipe):
    path = write_recipe(("import torch\n", "import torch\nfrom tiny_package.net import WIDTH\n"))
    package = path.parent / "tiny_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text("from .layers import WIDTH\n")
    (package / "layers.py").write_text("WIDTH = 3\n")
    before = load_recipe(path).sources
    assert {"tiny_package/__init__.py", "tiny_package/net.py", "tiny_package/layers.py"} < set(before)
    (package / "layers.py").write_text("WIDTH = 33\n")
    assert load_recipe(path).sources != before


def test_the_path_of_python_is_left_as_it_was_but_for_the_recipes_folder(write_recipe, tmp_path, monkeypatch):
    import sys

    here = str(tmp_path / "recipes")
    path = write_recipe()
    monkeypatch.syspath_prepend(here)
    load_recipe(path)
    load_recipe("linear")
    assert here in sys.path
