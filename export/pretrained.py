"""Any model of an installed package, or of a file here, with weights that you have.

    torchport ship pretrained --model torchvision.models:mobilenet_v2 --weights mobilenet_v2.pth \
        --input image:float32:batch,3,224,224
    torchport query mobilenet_v2 --data inputs.npz --output outputs.npz

`--weights` takes .pt, .pth and .safetensors. What else there is: `--argument num_classes=10` for the
callable, `--dim time:1,512` for the bounds of a dimension (batch: 1 to 16), `--outputs logits` for the
outputs' names, `--sample FILE.npz` for real inputs, `--name` and `--model-version` for the archive's.
"""

import importlib
import sys
import sysconfig
from pathlib import Path

from torchport.errors import RecipeError
from torchport.wrapped import WrappedModel, parse_arguments


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
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)  # Last, so that nothing here can shadow a package.
        try:
            found = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as err:
            raise RecipeError(f"--model {self.model!r}: {err}: is it installed, or a file here?") from err
        return self.checked(found(**self.arguments), self.model)

    def dependencies(self):
        file = Path(getattr(sys.modules[self.model.partition(":")[0]], "__file__", None) or "/")
        if file.is_file() and not file.is_relative_to(sysconfig.get_path("purelib")):
            yield file
