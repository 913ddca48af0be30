"""Any encoder as a model of the package mteb, whose image benchmark is MIEB (arXiv:2504.10471).

    import mteb
    from visrep import load_encoder
    from visrep.evaluation.adapters.mteb import MtebEncoder

    model = MtebEncoder(load_encoder("runs/dino"), name="dino")
    mteb.evaluate(model, mteb.get_tasks(["CIFAR10", "OxfordPets"]))

Tasks, splits and scores are mteb's own. An encoder of images reads images: tasks with texts, such as zero-shot
classification and retrieval by captions, end with an error that says so. mteb fetches its data sets itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from visrep.data import CanvasSet, canvas_size, open_source
from visrep.encoders.pretrained.extras import extra
from visrep.evaluation.features import evaluation_mode
from visrep.evaluation.fingerprint import digest_of
from visrep.method import Encoder, Pooling
from visrep.views import center

Numbers = Tensor | np.ndarray


@final
class MtebEncoder:
    """What `mteb.evaluate` calls its EncoderProtocol, for images.

    ``name`` is what mteb's results are filed under; they are told apart by a digest of the weights as well, so that
    another encoder of the same name is not taken for this one.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        name: str,
        pooling: Pooling = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises ValueError for an encoder of clips."""
        if encoder.preprocessing.frames:
            raise ValueError("mteb's tasks are of single images, and this encoder reads clips.")
        self.encoder = encoder.to(device).eval()
        self.name, self.pooling, self.device = name, pooling, torch.device(device)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: object,
        hf_split: str,
        hf_subset: str,
        prompt_type: object = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> Float32[np.ndarray, "n d"]:
        """One vector an image, in order. Batches come as mteb's loader makes them; all else but ``inputs`` is ignored.

        Raises ValueError for batches with texts or without images.
        """
        found = []
        with evaluation_mode(self.encoder), torch.no_grad():
            for batch in inputs:
                if "image" not in batch or "text" in batch:
                    raise ValueError(
                        f"this task gives {', '.join(sorted(batch))}, and {self.name} is an encoder of images alone. "
                        "Choose tasks of images, such as those of mteb.get_benchmark('MIEB(Img)')."
                    )
                found.append(self._encoded(list(batch["image"])))
        return np.concatenate(found)

    def similarity(self, embeddings1: Numbers, embeddings2: Numbers) -> Float[Tensor, "n m"]:
        """Cosine of every vector of one set with every one of the other."""
        one, other = _rows(embeddings1), _rows(embeddings2)
        return F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T

    def similarity_pairwise(self, embeddings1: Numbers, embeddings2: Numbers) -> Float[Tensor, " n"]:
        """Cosine of each pair."""
        return F.cosine_similarity(_rows(embeddings1), _rows(embeddings2), dim=-1)

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of this model. Raises ImportError, naming the extra, without mteb."""
        meta = extra("mteb.models.model_meta")
        known = {
            "name": f"visrep/{self.name}",
            "revision": digest_of(self.encoder)[:16],
            "n_parameters": sum(p.numel() for p in self.encoder.parameters()),
            "embed_dim": self.encoder.width * (2 if self.pooling == "cls+mean" else 1),
            "framework": ["PyTorch"],
            "similarity_fn_name": meta.ScoringFunction.COSINE,
            "modalities": ["image"],
        }
        return meta.ModelMeta.create_empty(known)

    def _encoded(self, images: list[Image.Image]) -> Float32[np.ndarray, "b d"]:
        """Of one batch. Each image's canvas follows from its own size, so that neighbours do not matter."""
        pixels = []
        for image in images:
            source = open_source([image])
            size = canvas_size(source, self.encoder.preprocessing.size)
            canvases = CanvasSet(source, size, cache="memory", workers=0).get(np.arange(1))
            pixels.append(center(canvases, self.encoder.preprocessing))
        tokens = self.encoder(torch.cat(pixels).to(self.device))
        return tokens.pool(cast(Pooling, self.pooling)).float().cpu().numpy()


def _rows(embeddings: Numbers) -> Float[Tensor, "n d"]:
    rows = torch.as_tensor(embeddings)
    return (rows if rows.ndim == 2 else rows[None]).float()
