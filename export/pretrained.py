"""Any model of an installed package or of a file here, with existing weights.

    torchport ship pretrained --model torchvision.models:mobilenet_v2 --weights mobilenet_v2.pth \
        --input image:float32:batch,3,224,224
    torchport query mobilenet_v2 --data inputs.npz --output outputs.npz

An input is name:dtype:dims. Token ids have bounds, and an input that a request may leave out has a
default: `--input tokens:int64:batch,time:0..999 --input mask:bool:batch,time=true --dim time:1,128`.
`--weights` takes .pt, .pth and .safetensors. Other options are `--argument num_classes=10` for the
callable, `--dim time:1,512` for the bounds of a dimension (batch: 1 to 16), `--outputs logits` for the
outputs' names, `--sample FILE.npz` for real inputs, `--name` and `--model-version` for the archive's.
"""

import importlib
from pathlib import Path

from torchport.errors import RecipeError
from torchport.recipe.user_code import imported_files, importing_from
from torchport.recipe.wrapped import WrappedModel, parse_arguments


class Pretrained(WrappedModel):
    """Any module:callable with given weights: tensors in, tensors out."""

    def configure(
        self,
        *,
        model: str,
        input: list[str],
        argument: list[str] = [],  # noqa: B006
        dim: list[str] = [],  # noqa: B006
        outputs: list[str] = [],  # noqa: B006
        sample: Path | None = None,
        name: str | None = None,
        model_version: str = "1.0",
    ):
        self.model, self.arguments, self.version = model, parse_arguments(argument), model_version
        self.describe(name or model.rpartition(":")[2].rpartition(".")[2], input, outputs, dim, sample)

    def build(self):
        module, _, path = self.model.partition(":")
        if not module or not path:
            raise RecipeError(f"--model {self.model!r}: module:callable is expected")
        try:
            with importing_from(Path.cwd()):
                found = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as err:
            raise RecipeError(f"--model {self.model!r}: {err}: is it installed, or a file here?") from err
        return self.checked(found(**self.arguments), self.model)

    def dependencies(self):
        return [*super().dependencies(), *imported_files(Path.cwd())]
