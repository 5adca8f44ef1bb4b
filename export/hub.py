"""Any entry of a torch.hub repository: a folder with a `hubconf.py`, or one on GitHub.

    torchport ship hub --repo path/to/repo --entry tiny --source local --input x:float32:batch,4
    torchport ship hub --repo pytorch/vision:v0.24.0 --entry resnet18 --source github --trust-repo \
        --argument weights=DEFAULT --input image:float32:batch,3,224,224

A repository's code runs on this machine: one on GitHub needs `--trust-repo`. The other options are
those of `pretrained`. `--weights FILE` replaces the entry's own weights.
"""

from pathlib import Path

import torch

from torchport.errors import RecipeError
from torchport.recipe.user_code import importing_from
from torchport.recipe.wrapped import WrappedModel, parse_arguments


class Hub(WrappedModel):
    """Any torch.hub entry: tensors in, tensors out."""

    def configure(
        self,
        *,
        repo: str,
        entry: str,
        input: list[str],
        source: str = "github",
        trust_repo: bool = False,
        argument: list[str] = [],  # noqa: B006
        dim: list[str] = [],  # noqa: B006
        outputs: list[str] = [],  # noqa: B006
        sample: Path | None = None,
        name: str | None = None,
        model_version: str = "1.0",
    ):
        if source not in ("github", "local"):
            raise RecipeError(f"--source {source!r}: github or local is expected")
        if source == "github" and not trust_repo:
            raise RecipeError(f"--repo {repo}: its code will run on this machine: say --trust-repo if it may")
        self.repo, self.entry, self.source = repo, entry, source
        self.arguments, self.version = parse_arguments(argument), model_version
        self.describe(name or entry, input, outputs, dim, sample)

    def build(self):
        if self.source == "local" and not (Path(self.repo) / "hubconf.py").is_file():
            raise RecipeError(f"--repo {self.repo}: there is no hubconf.py in it")
        try:
            with importing_from(Path(self.repo if self.source == "local" else torch.hub.get_dir()).resolve()):
                model = torch.hub.load(
                    self.repo,
                    self.entry,
                    source=self.source,
                    trust_repo=True,
                    verbose=False,
                    **self.arguments,
                )
        except (OSError, RuntimeError, ValueError, TypeError, ImportError, AttributeError) as err:
            raise RecipeError(f"torch.hub, entry {self.entry!r} of {self.repo}: {err}") from err
        return self.checked(model, self.entry)

    def dependencies(self):
        code = Path(self.repo).rglob("*.py") if self.source == "local" else ()
        return [*super().dependencies(), *code]
