"""What is installed is found as a worker of a server would: by `.pth` files and editable installs, too."""

import site
import sys
from importlib.machinery import ModuleSpec

import pytest

from torchport.errors import RecipeError
from torchport.recipe.installed import installed_file
from torchport.recipe.loading import load_recipe


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """An empty site-packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder)])
    return folder


def test_a_package_is_found_and_a_file_of_this_folder_is_not(write_recipe, monkeypatch):
    assert installed_file("numpy").name == "__init__.py"
    path = write_recipe()
    monkeypatch.chdir(path.parent)
    monkeypatch.syspath_prepend(str(path.parent))
    assert installed_file("tiny_recipe") is None
    assert installed_file("no_such_module") is None


def test_what_a_pth_file_adds(packages, tmp_path):
    project = tmp_path / "project"
    (project / "docs").mkdir(parents=True)
    (project / "their_model.py").write_text("")
    (packages / "project.pth").write_text(f"# a comment\nimport sys\n\n{project}\n")
    assert installed_file("their_model") == project / "their_model.py"
    assert installed_file("docs") is None  # A folder that is no package hides nothing that anybody imports.


def test_what_the_finder_of_an_editable_install_knows(monkeypatch, tmp_path):
    class Finder:
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return ModuleSpec(name, None, origin=str(tmp_path / "edited.py")) if name == "edited" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert installed_file("edited") == tmp_path / "edited.py"
    assert installed_file("other") is None


def test_a_recipe_named_like_one_is_refused_and_one_that_is_itself_installed_is_not(
    packages, tmp_path, write_recipe
):
    project = tmp_path / "project"
    project.mkdir()
    (packages / "project.pth").write_text(f"{project}\n{tmp_path / 'recipes'}\n")
    path = write_recipe()
    assert load_recipe(path).name == "tiny"
    (project / "tiny.py").write_text("")
    with pytest.raises(RecipeError, match="'tiny' is the name of an installed package"):
        load_recipe(path)
