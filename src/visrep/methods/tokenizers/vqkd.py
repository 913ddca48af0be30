"""VQ-KD: name each patch by one of k codes, so that a teacher's features can be told from the names.

    minimise  mean over patches of  1 - cos(g(q), t(x))  +  w_commit | z - sg(q) |^2 / d
    z = f(x) / |f(x)|        q = the code nearest to z
    code <- (decay code + (1 - decay) mean direction of its z), at length 1 again

f: an encoder and an MLP; g: a light decoder of the codes of all patches; t: a frozen teacher, the encoder of an earlier
run; sg: no gradient. The gradient of q goes to z. Peng et al. 2022, arXiv:2208.06366.

Verified against: the official quantiser, decoder and loss, values and gradients, and the codes after a step, 1e-9.
Deviations: codes used too seldom are put where patches are (revive; 0 is the official rule); the teacher is a run of
this library instead of CLIP or DINO; codes start from the first images of the run, not only from its first batch;
images are normalised as usual, not to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.encoders.frozen import load_frozen
from visrep.encoders.tokenizer import CodebookTokenizer
from visrep.functional import displayed, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.quantizer import perplexity
from visrep.nn.tokens import code_colours, shrink_residuals, token_map
from visrep.nn.transformer import linear
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.08, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    teacher: str = "runs/dino-paper"
    """folder of a finished run; its encoder gives the features that codes must tell"""
    encoder: ViTLike = ViT(width=768, heads=12)
    views: OneView = OneView(PLAIN)
    codes: int = 8192
    """k: few for small data, so that all are used"""
    code_width: int = 32
    """d: codes compared in few dimensions are used more evenly"""
    decoder_depth: int = 1
    """blocks of the decoder: 3 tell the features better, and leave less to the codes"""
    w_commit: float = 1.0
    decay: float = 0.99
    """of the codes; less for runs of few steps"""
    revive: float = 0.01
    """a code used less than this share of the average is put where a patch of the batch is; 0: never"""


def feature_distance(told: Float[Tensor, "b n d"], y: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
    """1 - cosine between what is told of each patch and the teacher's feature, mean over patches."""
    return 1 - F.cosine_similarity(told, y, dim=-1).mean()


@final
class VQKD(Method):
    captions: ClassVar[dict[str, str]] = {
        "tokens": "Columns: the image; its tokens, each code in its colour. Similar codes have similar colours."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.teacher = load_frozen(
            cfg.teacher, cfg.views.preprocessing, field="teacher", methods=("dino", "mae")
        )
        self.tokenizer = CodebookTokenizer(cfg.encoder, cfg.codes, cfg.code_width, "cosine").build()
        width = cfg.encoder.width
        # A ViT whose pixels are the codes.
        self.decoder = ViT(
            image=cfg.views.size // cfg.encoder.patch,
            patch=1,
            channels=cfg.code_width,
            width=width,
            depth=cfg.decoder_depth,
            heads=cfg.encoder.heads,
        ).build()
        self.tell = nn.Sequential(linear(width, width), nn.Tanh(), linear(width, self.teacher.encoder.width))
        for vit in (self.tokenizer.backbone, self.decoder):
            shrink_residuals(vit.get_submodule("blocks"))

    @property
    def encoder(self) -> Encoder:
        return self.tokenizer

    def before_epoch(self, images: Iterable[Batch], at: At) -> None:
        latents = (self.tokenizer.latents(self.tokenizer(batch.crops[0][0]).patches) for batch in images)
        self.tokenizer.codebook.begin(latents, at)

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        found = self.tokenizer(images)
        with torch.no_grad():
            y = widen(self.teacher.encoder(self.teacher.fit(images, found.grid)).patches)  # b n d
        codebook = self.tokenizer.codebook
        q = codebook(self.tokenizer.latents(found.patches))
        told = widen(self.tell(self.decoder(q.vectors.mT.unflatten(2, found.grid)).patches))
        with torch.autocast(y.device.type, enabled=False):
            distance = feature_distance(told, y)
        carry = codebook.counted(q, at.rand(len(images)))
        monitor = {
            "teacher_cosine": 1 - distance.detach(),
            "code_perplexity": perplexity(carry["code_counts"][0]),  # codes in use in this batch
            "codes_alive": (codebook.size > 0.01 * codebook.size.mean()).float().mean(),
        }
        terms = {"cosine": distance, "commitment": self.cfg.w_commit * q.commitment}
        return Losses(terms, monitor, carry)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.tokenizer.codebook.follow(carry, decay=self.cfg.decay, revive=self.cfg.revive)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, view = batch.crops[0][0], self.cfg.views.view
        found = self.tokenizer(images)
        tokens = self.tokenizer.choose(self.tokenizer.latents(found.patches))
        names = token_map(tokens, code_colours(self.tokenizer.vectors()), found.grid, images)
        return {"tokens": torch.stack([displayed(images, view.mean, view.std), names.to(images)], dim=1)}


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            teacher="runs/dino-tiny",
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2),
            views=OneView(replace(PLAIN, size=32)),
            codes=32,
            code_width=8,
            decay=0.9,
            revive=0.1,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, tokens of 4 x 4 pixels; make runs/mae-small32 first, whose patches are the same.

    What short runs need: few codes, which move fast (decay) and are moved early where nobody uses them (revive).
    """
    return Run(
        method=Config(
            teacher="runs/mae-small32",
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=32, scale=(0.2, 1.0))),
            codes=512,
            code_width=16,
            decay=0.97,
            revive=0.1,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1),
        limit=10_000,
        epochs=6,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16; make runs/dino-imagenette128 first. Unverified: not run here."""
    return Run(
        method=Config(
            teacher="runs/dino-imagenette128",
            encoder=ViT(image=128),
            views=OneView(replace(PLAIN, size=128)),
            codes=1024,
        ),
        optim=_adamw(lr=2e-4, lr_scaling="linear", warmup=5),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 100 epochs, batch 512; the official rule for codes. Unverified: not run here."""
    optim = replace(_adamw(lr=5e-5, lr_scaling="none", warmup=10), lr=Warmup(10, then=Cosine(5e-5, 1e-5)))
    return Run(method=Config(revive=0.0), optim=optim, epochs=100, batch=512)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(1e-4),
        betas=(0.9, 0.99),
    )
