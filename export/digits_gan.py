"""Draws handwritten digits by a conditional generative adversarial network.

    torchport ship export/digits_gan.py

It is a DCGAN (Radford et al., 2015) that is told which digit to draw. Generator and discriminator train
as one model. The generator, averaged over training, is exported. The discriminator judges a picture
together with its digit by projection (Miyato and Koyama, 2018) and has spectral normalisation. What it
sees, real or drawn, is shifted by up to a pixel, so that it cannot learn 1,437 scans by heart. A small
term (mode seeking, Mao et al., 2019) rewards the generator if other noise makes another picture:
without it all threes look alike.

A judge that has no part in the training says how good the samples are. It is a support vector machine
with an eleventh class, "no digit", of noise and of blends of two digits. It refuses pictures that a
plain classifier of digits calls one of the ten.
"""

import copy
from functools import lru_cache

import _digits
import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import pairwise_distances
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from torchport import Example, Recipe, Request, TensorSpec
from torchport_runtime import decode_image
from torchport_runtime.pictures import choices, cut_sheet, noise, to_pixels

SIZE, NOISE, ENLARGE = 8, 16, 8
BATCH_SIZE, BETAS = 128, (0.5, 0.99)
GENERATOR_RATE, DISCRIMINATOR_RATE = 4e-4, 8e-4
AVERAGING, MODE_SEEKING = 0.999, 0.002
SHEETS, PER_SHEET = 60, 16
CONFIDENT, NO_DIGIT = 0.9, 10


@lru_cache(maxsize=1)
def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and held-out scans, uint8 [n, 1, 8, 8].

    Their digits are int64 [n].
    """
    train, heldout, train_digits, heldout_digits = _digits.split()
    return (*(to_pixels(scans[:, None], 0, 16) for scans in (train, heldout)), train_digits, heldout_digits)


class Generator(nn.Module):
    """Turns noise [batch, NOISE] and digits, int64 [batch], into images [batch, 1, 8, 8] in [0, 1]."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.digit = nn.Embedding(10, NOISE)
        self.body = nn.Sequential(
            nn.ConvTranspose2d(2 * NOISE, 2 * width, 4, bias=False),  # [batch, 96, 4, 4]
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # [batch, 48, 8, 8]
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, noise, digit):
        seed = torch.cat([noise, self.digit(digit)], dim=1)
        return (self.body(seed[:, :, None, None]) + 1) / 2


class Discriminator(nn.Module):
    """Turns images [batch, 1, 8, 8] and their digits into logits [batch]: above 0 is real."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.body = nn.Sequential(
            spectral_norm(nn.Conv2d(1, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.real = spectral_norm(nn.Linear(4 * width * 4, 1))
        self.digit = spectral_norm(nn.Embedding(10, 4 * width * 4))

    def forward(self, image, digit):
        features = self.body(2 * image - 1)
        return self.real(features)[:, 0] + (features * self.digit(digit)).sum(1)


class Adversaries(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = Generator(), Discriminator()


class DigitsGan(Recipe):
    """Handwritten digits, drawn from noise, by a conditional DCGAN."""

    name, version, handler = "digits_gan", "1.0", "image_generator"
    inputs = {
        "noise": TensorSpec("float32", ("batch", NOISE)),
        "digit": TensorSpec("int64", ("batch",), low=0, high=9),
    }
    outputs = {"image": TensorSpec("float32", ("batch", 1, SIZE, SIZE), low=0, high=1)}
    handler_options = {"enlarge": ENLARGE}
    goals = {"recognised": ">= 0.8", "classes": ">= 10"}

    def configure(self, *, epochs: int = 50):
        self.epochs = epochs

    def build(self):
        return Adversaries()

    def graphs(self, model):
        return {"main": model.generator}

    def train(self, model, run):
        scans, heldout, scanned_digits, heldout_digits = split()
        run.fingerprint(scans, scanned_digits)
        x, y = torch.from_numpy(scans).float() / 255, torch.from_numpy(scanned_digits)
        steps = len(x) // BATCH_SIZE
        generator, discriminator = model.generator, model.discriminator
        average = copy.deepcopy(generator)
        teach_generator = torch.optim.Adam(generator.parameters(), GENERATOR_RATE, BETAS)
        teach_discriminator = torch.optim.Adam(discriminator.parameters(), DISCRIMINATOR_RATE, BETAS)
        state = {
            "model": model,
            "average": average,
            "teach_generator": teach_generator,
            "teach_discriminator": teach_discriminator,
        }
        for epoch in range(run.restore(**state), self.epochs):
            model.train()
            batches = torch.randperm(len(x))[: steps * BATCH_SIZE].split(BATCH_SIZE)
            for step, batch in enumerate(run.progress(batches, f"epoch {epoch + 1} of {self.epochs}", steps)):
                digit = y[batch].to(run.device)
                real = shifted(x[batch]).to(run.device)
                some, other = torch.randn(2, len(batch), NOISE).to(run.device)
                drawn = generator(some, digit)

                on_real, on_drawn = discriminator(real, digit), discriminator(shifted(drawn.detach()), digit)
                loss = F.softplus(-on_real).mean() + F.softplus(on_drawn).mean()
                teach_discriminator.zero_grad()
                loss.backward()
                teach_discriminator.step()

                difference = (drawn - generator(other, digit)).abs().mean((1, 2, 3))
                per_noise = (difference / (some - other).abs().mean(1)).mean()
                loss = F.softplus(-discriminator(shifted(drawn), digit)).mean() + MODE_SEEKING / per_noise
                teach_generator.zero_grad()
                loss.backward()
                teach_generator.step()
                # The first weights are forgotten fast: an average over a tenth of the steps so far.
                weight = max(1 - AVERAGING, 1 / (2 + (epoch * steps + step) / 10))
                update_average(average, generator, weight)
            run.checkpoint(epoch + 1, **state)
        generator.load_state_dict(average.state_dict())
        model.cpu().eval()  # Rounding on a GPU differs; the metrics are to be those of what is served.
        with torch.no_grad():
            sheets = [generator(*map(torch.from_numpy, sample(seed))).numpy() for seed in range(SHEETS)]
        asked = np.concatenate([sample(seed)[1] for seed in range(SHEETS)])
        real = measure(heldout, heldout_digits)  # What scans by real hands reach.
        return measure(to_pixels(np.concatenate(sheets)), asked) | {
            f"scans_{name}": real[name] for name in ("recognised", "as_asked", "nearest", "variety")
        }

    def samples(self):
        for first in (0, 2):
            seeds = [sample(first), sample(first + 1)]
            yield {name: np.concatenate([s[i] for s in seeds]) for i, name in enumerate(self.inputs)}

    def requests(self):
        some, digits = sample(7)
        threes = {"noise": noise(7, 4, (NOISE,)), "digit": np.full(4, 3, np.int64)}
        return [
            Request(json={"seed": 7, "n": 16}, tensors={"noise": some, "digit": digits}),
            Request(json={"seed": 7, "n": 4, "digit": 3}, tensors=threes),
            Request(json={}, tensors=dict(zip(self.inputs, sample(0), strict=True))),
        ]

    def heldout(self):
        """Sheets of samples; expected are the digits that the seeds ask for."""
        for seed in range(SHEETS):
            digits = sample(seed)[1].tolist()
            yield Example(request=Request(json={"seed": seed, "n": PER_SHEET}), expected=digits)

    def score(self, answers, expected):
        sheets = [np.asarray(decode_image(answer, "L")) for answer in answers]
        pixels = [cut_sheet(sheet, PER_SHEET, (SIZE, SIZE), ENLARGE) for sheet in sheets]
        return measure(np.concatenate(pixels), np.concatenate(expected))


def sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, float32 [16, NOISE], and digits, int64 [16], as the handler draws them."""
    return noise(seed, PER_SHEET, (NOISE,)), choices(seed, PER_SHEET, 0, 9)


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image shifted by -1, 0 or 1 pixels in either direction; black moves in."""
    count = len(images)
    padded = F.pad(images, (1, 1, 1, 1))[:, 0]
    rows, columns = (torch.arange(SIZE) + torch.randint(0, 3, (count, 1)) for _ in "yx")
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, weight: float) -> None:
    """Move weights and batch statistics of `average` towards those of `current`."""
    for mean, value in zip(average.state_dict().values(), current.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, weight)
        else:
            mean.copy_(value)


def measure(pixels: np.ndarray, digits: np.ndarray) -> dict[str, float]:
    """The judge's figures of pictures, uint8 [n, 1, 8, 8], drawn as `digits`.

    `recognised` is the fraction seen as a digit with a confidence of 0.9, `classes` the number of
    different digits among them, and `as_asked` the fraction whose likeliest class is the requested
    digit. `nearest` is the mean distance to the nearest training scan: copies have 0, new scans by real
    hands about 1. `variety` is the distance of two pictures of a digit, as a share of that of two
    training scans of it.
    """
    flat = pixels.reshape(len(pixels), -1) / 255
    judge, scans = trained_judge()
    probabilities = judge.predict_proba(flat)
    seen = probabilities.argmax(1)
    recognised = (seen != NO_DIGIT) & (probabilities.max(1) >= CONFIDENT)
    nearest = [np.square(scans - one).sum(1).min() ** 0.5 for one in flat]
    return {
        "recognised": float(recognised.mean()),
        "classes": float(len(set(seen[recognised]))),
        "as_asked": float((seen == digits).mean()),
        "nearest": float(np.mean(nearest)),
        "variety": spread(flat, digits) / spread(scans, split()[2]),
    }


def spread(flat: np.ndarray, digits: np.ndarray) -> float:
    """Mean distance between two pictures, rows of [n, 64], of the same digit."""
    by_digit = [flat[digits == digit] for digit in range(10)]
    return float(np.mean([pairwise_distances(same).mean() for same in by_digit if len(same)]))


@lru_cache(maxsize=1)
def trained_judge() -> tuple[CalibratedClassifierCV, np.ndarray]:
    """The judge, and the training scans, float64 [n, 64].

    It is trained on the scans and on as many pictures that are no digits. It is the same each time.
    """
    train, _, digits, _ = split()
    scans = train.reshape(len(train), -1) / 255
    random, third = np.random.RandomState(0), len(scans) // 3
    pairs = random.randint(len(scans), size=(2, 2 * third))
    one, other = pairs[:, digits[pairs[0]] != digits[pairs[1]]][:, :third]
    blends = (scans[one] + scans[other]) / 2
    shuffled = [random.permutation(scan) for scan in scans[random.randint(len(scans), size=third)]]
    others = np.concatenate([blends, shuffled, random.random_sample((third, SIZE * SIZE))])
    classes = np.concatenate([digits, np.full(len(others), NO_DIGIT)])
    judge = CalibratedClassifierCV(SVC(C=10), ensemble=False)
    return judge.fit(np.concatenate([scans, others]), classes), scans
