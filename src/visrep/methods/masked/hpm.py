"""HPM: a masked autoencoder that hides the patches which its teacher expects to be hard to predict.

    minimise  mean over hidden i of e_i    +    mean over hidden i, j with e_i > e_j of  -log sigmoid(p_i - p_j)
    e_i = | f(x_visible)_i - x_i |^2 / (p p c)        t <- decay t + (1 - decay) s

p: a second decoder that predicts, not how large the error e of a patch is, but which of two patches has the larger. The
teacher t's p of whole images chooses a part of the hidden patches, the hardest; chance the others. That part grows
through the run: at first nobody knows what is hard. Wang et al. 2023, arXiv:2304.05919.

Verified against: the official errors, predictions and gradients, 1e-9, the ranking loss 1e-5 (it adds 1e-6 inside the
logarithms), and the official masks: the same hardest patches, the others as likely.
Deviations: the share of the hardest grows every step (officially every epoch); the second decoder's last layer gives
one number (officially as many as a patch has, then their mean).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import mean_over_ranks
from visrep.encoders import ViT, ViTLike
from visrep.functional import CONTRAST, REPAINTED, displayed, patch_statistics, patchify, repainted, widen
from visrep.masking import exact_mask, random_split
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.decoder import MaskedDecoder
from visrep.nn.teacher import Teacher
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Ramp, Schedule, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(width=768, heads=12, position="sincos")
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.75
    """share of the patches that are hidden"""
    hardest: float = 0.5
    """share of the hidden patches that are the hardest at the end of the run, up from 0 in a straight line: at 1,
    nothing is left to chance and too little to see"""
    norm_pixels: bool = False
    """predict pixels normalised patch by patch; then noise counts as hard, and without it what has contrast does"""
    teacher_decay: Schedule = Ramp(0.999, 0.9999, epochs=100)
    """less for runs of few steps"""
    decoder_width: int = 512
    decoder_depth: int = 8
    """blocks of each of the two decoders"""
    decoder_heads: int = 16


def patch_errors(
    prediction: Float[Tensor, "b n q"], target: Float[Tensor, "b n q"], hidden: Int[Tensor, "b m"]
) -> Float[Tensor, "b m"]:
    """Squared error of each hidden patch, mean over its values."""
    return (prediction - target).square().mean(-1).gather(1, hidden)


def ranking_loss(
    predicted: Float[Tensor, "b m"], errors: Float[Tensor, "b m"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of which of two patches of an image has the larger error; the share of pairs in the right order."""
    harder = errors.unsqueeze(2) > errors.unsqueeze(1)  # b m m: row than column
    lead = (predicted.unsqueeze(2) - predicted.unsqueeze(1))[harder]
    return F.softplus(-lead).sum() / mean_over_ranks(harder.sum().to(lead)), (lead > 0).to(lead).mean()


class Student(nn.Module):
    """Encoder and second decoder: of each patch of whole images, how hard it is to predict."""

    def __init__(self, encoder: Encoder, ranker: MaskedDecoder) -> None:
        super().__init__()
        self.encoder, self.ranker = encoder, ranker

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        tokens = self.encoder(images)
        b, n = tokens.patches.shape[:2]
        keep = torch.arange(n, device=images.device).expand(b, -1)
        return self.ranker(tokens, keep, keep[:, :0]).squeeze(-1)


@final
class HPM(Method):
    captions: ClassVar[dict[str, str]] = {
        "reconstructions": f"{REPAINTED[:-1]}; how hard each patch is thought to be, bright = hard.{CONTRAST}"
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        if not 0 <= cfg.hardest <= 1:
            raise ValueError(f"hardest={cfg.hardest} is not a share. Use 0 for MAE's masks, at most 1.")
        patch, side = cfg.encoder.patch, cfg.views.size // cfg.encoder.patch
        self.decoder, ranker = (
            MaskedDecoder(
                cfg.encoder.width,
                n_out,
                (side, side),
                width=cfg.decoder_width,
                depth=cfg.decoder_depth,
                heads=cfg.decoder_heads,
            )
            for n_out in (patch * patch * cfg.encoder.channels, 1)
        )
        ranker.embed, ranker.mask_token = self.decoder.embed, self.decoder.mask_token  # both decoders' own
        self.student = Student(cfg.encoder.build(), ranker)
        self.apply(xavier)
        self.teacher = Teacher(self.student)

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        images, cfg = batch.crops[0][0], self.cfg
        _, keep, hidden = self._masks(images, at)
        visible = self.student.encoder(images, keep=keep)
        prediction = widen(self.decoder(visible, keep, hidden))
        guess = widen(self.student.ranker(visible, keep, hidden).squeeze(-1).gather(1, hidden))
        target = patchify(images, cfg.encoder.patch)
        if cfg.norm_pixels:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        errors = patch_errors(prediction, target, hidden)
        ranking, accuracy = ranking_loss(guess, errors.detach())
        reconstruction = errors.mean()
        # What the best constant patch would leave: 1 means that nothing is predicted.
        unexplained = reconstruction.detach() / target.var(correction=0)
        return Losses(
            {"reconstruction": reconstruction, "ranking": ranking},
            {"unexplained_variance": unexplained, "ranking_accuracy": accuracy},
        )

    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, patch, view = batch.crops[0][0], self.cfg.encoder.patch, self.cfg.views.view
        expected, keep, hidden = self._masks(images, at)
        prediction = self.decoder(self.student.encoder(images, keep=keep), keep, hidden)
        if self.cfg.norm_pixels:  # a prediction lacks each patch's mean and contrast: take the true ones
            mean, std = patch_statistics(patchify(images, patch))
            prediction = prediction * std + mean
        covered = torch.zeros_like(expected, dtype=torch.bool).scatter(1, hidden, True)
        rows = displayed(repainted(images, prediction, covered, patch), view.mean, view.std)
        place = expected.argsort(1).argsort(1).to(images) / (expected.shape[1] - 1)  # b n
        cells = place.view(-1, 1, images.shape[-2] // patch, images.shape[-1] // patch)
        bright = F.interpolate(cells, images.shape[-2:])  # b 1 h w
        return {"reconstructions": torch.cat([rows, bright.expand_as(images).unsqueeze(1)], dim=1)}

    def _masks(self, images: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor]:
        """How hard the teacher thinks each patch is, "b n"; kept and hidden indices."""
        expected = self.teacher(images)
        b, n = expected.shape
        noise, ratio = at.rand(b, n), self.cfg.mask_ratio
        n_hidden = random_split(noise, ratio)[1].shape[1]
        count = noise.new_full((b,), self.cfg.hardest * at.progress * n_hidden)
        return expected, *random_split(noise + exact_mask(-expected, count), ratio)  # these come last


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos"),
            views=OneView(replace(PLAIN, size=32)),
            teacher_decay=Cosine(0.99, 1.0),
            decoder_width=32,
            decoder_depth=1,
            decoder_heads=2,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, two light decoders.

    Short runs need a teacher that moves fast, or masks stay as random as at first.
    """
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=32)),
            teacher_decay=Cosine(0.98, 1.0),
            decoder_width=64,
            decoder_depth=1,
            decoder_heads=4,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1.0),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=128)),
            teacher_decay=Cosine(0.99, 1.0),
            decoder_width=256,
            decoder_depth=4,
            decoder_heads=8,
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 800 epochs, batch 256 as in the official script. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=1.5e-4, lr_scaling="linear", warmup=40.0), epochs=800, batch=256
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the tokens
    )
