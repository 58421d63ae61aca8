"""rFID and Inception Score through torch-fidelity, with the network from a local file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vqkern.files import sha256_of
from vqkern.public_files import PublicFile

INCEPTION = PublicFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
SPLITS = 10


class InceptionScores:
    """Collects Inception features of reconstructions and originals, batch by batch.

    The network is torch-fidelity's port of the TensorFlow graph that FID was defined with
    (`inception-v3-compat`), which the ADM evaluator runs too; images are resized to 299 as
    TensorFlow 1 did. Memory: 4 x (2 x 2048 + 1008) bytes an image.

    Args:
        weights: The network's file, or a folder that holds it. Nothing is downloaded.
        device: Where it runs.
        layer: Of the features, 64, 192, 768 or 2048. Scores of other layers than 2048 are no FID.
        expected: The file that is taken for it.

    Raises:
        ValueError: the file is missing or another one, or torch-fidelity is not usable.
    """

    def __init__(
        self,
        weights: str | Path,
        device: torch.device | str = "cpu",
        *,
        layer: int = 2048,
        expected: PublicFile = INCEPTION,
    ) -> None:
        path = expected.find(weights, "Inception")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError, OSError) as error:  # torchvision may fail to load
            raise ValueError(
                f"Inception: torch-fidelity cannot be used here ({error}): "
                f"pip install 'vqkern[eval]' beside a matching torchvision"
            ) from error
        self.layer = str(layer)
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            [self.layer, "logits_unbiased"],
            feature_extractor_weights_path=str(path),
        ).to(device)
        self.sha256 = sha256_of(path)
        self.features: dict[str, list[Tensor]] = {"images": [], "reference": []}
        self.logits: list[Tensor] = []

    @torch.no_grad()
    def add(self, images: Tensor, reference: Tensor) -> None:
        """Takes reconstructions and their originals, uint8 [B, 3, H, W].

        Raises:
            ValueError: another dtype or shape.
        """
        for name, batch in (("images", images), ("reference", reference)):
            if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
                raise ValueError(
                    f"{name}: expected uint8 [B, 3, H, W], got {batch.dtype} {list(batch.shape)}"
                )
            device = next(self.network.parameters()).device
            features, logits = self.network(batch.to(device))
            self.features[name].append(features.cpu())
            if name == "images":
                self.logits.append(logits.cpu())

    def rfid(self) -> float:
        """Frechet distance between Gaussians fitted to the features of both sides.

        Raises:
            ValueError: fewer than two images.
        """
        from torch_fidelity.metric_fid import (
            KEY_METRIC_FID,
            fid_features_to_statistics,
            fid_statistics_to_metric,
        )

        self._require(2)
        statistics = [fid_features_to_statistics(torch.cat(f)) for f in self.features.values()]
        return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]

    def inception_score(self) -> float:
        """Of the reconstructions: mean over ten splits in torch-fidelity's shuffled order.

        Raises:
            ValueError: fewer images than splits.
        """
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        self._require(SPLITS)
        return isc_features_to_metric(torch.cat(self.logits), SPLITS)[KEY_METRIC_ISC_MEAN]

    def _require(self, count: int) -> None:
        have = sum(map(len, self.logits))
        if have < count:
            raise ValueError(f"images: got {have}, Inception's scores need at least {count}")
