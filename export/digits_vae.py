"""A variational auto-encoder of handwritten digits, served as two graphs.

    torchport ship export/digits_vae.py

The method is that of Kingma and Welling, 2013. The `encoder` gives a mean and a variance in 8
dimensions. The `decoder` draws a picture of 8 numbers. Chance stays outside of both: the handler
reconstructs from the mean, and draws samples from a seed.

Reconstructions are compared with principal components. As many of them as the latent has dimensions,
fitted on the same training digits, are the best that any linear code of that size can do. The weight of
the KL divergence is small (0.1, with the summed squared error). On a fifth of the training digits,
smaller ones reconstructed better (0.02 and 0.05, by a quarter and a ninth) with hardly fewer samples
that look like digits. About half of the samples are digits to the judge of `digits_gan`.
"""

import io
from functools import lru_cache

import _digits
import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

from torchport import Example, ImageTransform, Recipe, Request, Signature, TensorSpec
from torchport_runtime import decode_image
from torchport_runtime.pictures import cut_sheet, noise, to_pixels

SIZE, LATENT, ENLARGE = 8, 8, 8
BATCH_SIZE, LEARNING_RATE, KL_WEIGHT = 64, 2e-3, 0.1

transform = ImageTransform(size=(SIZE, SIZE), mode="L", mean=(0.0,), std=(1.0,))


@lru_cache(maxsize=1)
def split() -> tuple[list[bytes], list[bytes]]:
    """Training and held-out scans, each a PNG file as a client would send it."""
    train, heldout, _, _ = _digits.split()
    return [_digits.png(scan) for scan in train], [_digits.png(scan) for scan in heldout]


def preprocess(files: list[bytes]) -> np.ndarray:
    """Image files as float32 [n, 1, 8, 8] in [0, 1], by the handler's code."""
    return np.stack([transform(decode_image(file, transform.mode)) for file in files])


class Encoder(nn.Module):
    """Turns images [batch, 1, 8, 8] into mean and log variance, [batch, LATENT] each."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),  # [batch, 64, 4, 4]
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 256),
            nn.ReLU(),
            nn.Linear(256, 2 * LATENT),
        )

    def forward(self, image):
        mean, log_variance = self.body(image).chunk(2, dim=1)
        return mean, log_variance


class Decoder(nn.Module):
    """Turns [batch, LATENT] into images [batch, 1, 8, 8] in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(LATENT, 256),
            nn.ReLU(),
            nn.Linear(256, 64 * 4 * 4),
            nn.ReLU(),
            nn.Unflatten(1, (64, 4, 4)),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latent):
        return self.body(latent)


class Autoencoder(nn.Module):
    """Encoder and decoder together, as they are trained.

    The decoder gets a sample from the encoder's distribution.
    """

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, image):
        mean, log_variance = self.encoder(image)
        latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(latent), mean, log_variance


class DigitsVae(Recipe):
    """Handwritten digits, reconstructed from 8 numbers or drawn from noise, by a VAE."""

    name, version, handler = "digits_vae", "1.0", "autoencoder"
    handler_options = {"image": transform.to_json(), "enlarge": ENLARGE}
    goals = {"mse_to_pca": "< 0.85"}

    def configure(self, *, epochs: int = 60):
        self.epochs = epochs

    def build(self):
        return Autoencoder()

    def graphs(self, model):
        return {"encoder": model.encoder, "decoder": model.decoder}

    def signatures(self):
        image = TensorSpec("float32", ("batch", 1, SIZE, SIZE), low=0, high=1)
        latent = TensorSpec("float32", ("batch", LATENT))
        return {
            "encoder": Signature(inputs={"image": image}, outputs={"mean": latent, "log_variance": latent}),
            "decoder": Signature(inputs={"latent": latent}, outputs={"image": image}),
        }

    def train(self, model, run):
        train_files, heldout_files = split()
        images = preprocess(train_files)
        run.fingerprint(images)
        x = torch.from_numpy(images)
        steps = len(x) // BATCH_SIZE
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=self.epochs * steps
        )
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        for epoch in range(run.restore(**state), self.epochs):
            model.train()
            batches = torch.randperm(len(x))[: steps * BATCH_SIZE].split(BATCH_SIZE)
            for batch in run.progress(batches, f"epoch {epoch + 1} of {self.epochs}", steps):
                image = x[batch].to(run.device)
                drawn, mean, log_variance = model(image)
                squared_error = (drawn - image).square().sum((1, 2, 3))
                loss = (squared_error + KL_WEIGHT * kl_divergence(mean, log_variance)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            run.checkpoint(epoch + 1, **state)
        model.cpu().eval()  # Rounding on a GPU differs; the metrics are to be those of what is served.
        metrics = {}
        for prefix, files in (("", heldout_files), ("train_", train_files)):
            with torch.no_grad():
                mean, log_variance = model.encoder(torch.from_numpy(preprocess(files)))
                drawn = to_pixels(model.decoder(mean).numpy())
                kl = kl_divergence(mean, log_variance).mean()
            metrics |= {f"{prefix}{n}": v for n, v in measure(drawn, files).items()}
            metrics[f"{prefix}kl"] = float(kl)
        return metrics

    def graph_samples(self, graph):
        if graph == "encoder":
            images = preprocess(split()[1][:64])
            yield {"image": images[:32]}
            yield {"image": images[32:]}
        else:
            yield {"latent": noise(0, 32, (LATENT,))}
            yield {"latent": noise(1, 32, (LATENT,))}

    def requests(self):
        scan = split()[1][0]
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(scan)).resize((200, 150)).convert("RGB").save(jpeg, "JPEG", quality=95)
        pictures = [
            Request(body=body, content_type=kind, params=params, tensors={"image": preprocess([body])})
            for kind, body in (("image/png", scan), ("image/jpeg", jpeg.getvalue()))
            for params in ({}, {"side_by_side": "1"})
        ]
        return [
            *pictures,
            Request(json={"seed": 7, "n": 16}, tensors={"latent": noise(7, 16, (LATENT,))}),
            Request(json={}, tensors={"latent": noise(0, 16, (LATENT,))}),
        ]

    def heldout(self):
        """Every held-out scan; the same scan is expected."""
        for scan in split()[1]:
            yield Example(request=Request(body=scan, content_type="image/png"), expected=scan)

    def score(self, answers, expected):
        drawn = [np.asarray(decode_image(answer, "L")) for answer in answers]
        pixels = np.concatenate([cut_sheet(one, 1, (SIZE, SIZE), ENLARGE) for one in drawn])
        return measure(pixels, expected)


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Divergence of each row's distribution from the standard normal one, in nats: [batch]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def measure(drawn: np.ndarray, files: list[bytes]) -> dict[str, float]:
    """Mean squared errors of the reconstructions `drawn`, uint8 [n, 1, 8, 8].

    `mse` is theirs, with pixels in [0, 1]. `pca_mse` is that of reconstructions by principal
    components. `mse_to_pca` is the ratio of the two.
    """
    truth = preprocess(files).reshape(len(files), -1).astype(np.float64)
    mse = np.square(drawn.reshape(len(files), -1) / 255 - truth).mean()
    components = principal_components()
    pca_mse = np.square(components.inverse_transform(components.transform(truth)) - truth).mean()
    return {"mse": float(mse), "pca_mse": float(pca_mse), "mse_to_pca": float(mse / pca_mse)}


@lru_cache(maxsize=1)
def principal_components() -> PCA:
    """Principal components of the training digits, the same each time.

    There are as many as the latent has dimensions.
    """
    train = preprocess(split()[0]).reshape(-1, SIZE * SIZE).astype(np.float64)
    return PCA(LATENT, svd_solver="full").fit(train)
