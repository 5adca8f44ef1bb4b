"""VGG-11 with batch norm on handwritten digits, with a small classifier.

    torchport ship digits_vgg11

The original classifier, made for ImageNet, would be 500 MB of the archive. Data, training and metric
are those of `digits_resnet18`.
"""

from digits_resnet18 import DigitsResNet18
from torch import nn
from torchvision.models import vgg11_bn

from torchport import ImageTransform, TensorSpec


class DigitsVGG11(DigitsResNet18):
    """Handwritten digits, 0 to 9, by VGG-11."""

    name = "digits_vgg11"
    transform = ImageTransform(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), reducing_gap=2)
    inputs = {"image": TensorSpec("float32", ("batch", 3, 32, 32))}
    handler_options = DigitsResNet18.handler_options | {"image": transform.to_json()}
    learning_rate = 0.02

    def configure(self, *, epochs: int = 5):
        self.epochs = epochs

    def build(self):
        model = vgg11_bn()
        # Of 32 x 32 pixels the five poolings leave one position of 512 channels.
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 10))
        return model
