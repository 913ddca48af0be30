"""Fine-tuning: all weights of the encoder and a linear classifier on its mean patch, trained on labelled images.

    minimise   cross-entropy(W mean(patches) + b, y)      learning rate of layer i = lr decay^(depth + 1 - i)

x and y mixed (see `mixing`), by AdamW with a warm-up and half a cosine. ``finetune`` is for up to some 100,000 images,
``finetune-motion`` for some thousand clips whose label is a motion: nothing is mirrored, so that left stays left;
``finetune-mae`` and ``finetune-mae-large`` are MAE's settings for ImageNet with ViT-B and ViT-L (arXiv:2111.06377, its
FINETUNE.md): 83.7 and 86.0 % there. Behind a colon stands how many images have labels, a percentage of each class or a
number: ``finetune:10%``, ``finetune:5``; these are drawn three times (see `interval_over_draws`). Settings are chosen
on a held-out part of the images whose labels may be used, of several draws the first, then all of these are trained on.
Every encoder, the untrained twin too, goes the same way and chooses for itself.

*Deviations* of the MAE settings: crops are rounded to 8 bits once, Pillow's after either axis of the resize. The norm
after the mean takes the place of the last one in our own transformers; encoders of other kinds keep theirs before it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from visrep.evaluation.draws import Amount, amount, draw_labelled
from visrep.evaluation.fitting import Fit, Images, Recipe
from visrep.evaluation.mixing import Mixing
from visrep.evaluation.results import Prediction
from visrep.method import Encoder
from visrep.views import Erasing, RandAugment, View

DRAWS = 3

SMALL = Recipe(
    # the last is for encoders that are best trained as if from scratch, as the untrained twin may be
    tries=((5e-4, 0.75), (2e-3, 0.75), (1e-3, 1.0)),
    epochs=20,
    least_steps=200,
    warmup=0.1,
    batch=128,
    view=View(scale=(0.35, 1.0), jitter=0.0, gray=0.0, blur=0.0),
    mixing=Mixing(probability=0.5),
)
MAE_BASE = Recipe(
    tries=((4 * 5e-4, 0.65),),  # stated for 256 images, scaled linearly
    epochs=100,
    warmup=5 / 100,
    batch=1024,
    view=View(jitter=0.0, gray=0.0, blur=0.0),
    augment=RandAugment(),
    erasing=Erasing(),
    norm="layer",
    positions=True,
)
MAE_LARGE = replace(MAE_BASE, tries=((4 * 1e-3, 0.75),), epochs=50, warmup=5 / 50, drop_path=0.2)
MOTION = Recipe(
    tries=((1e-3, 1.0),),
    epochs=15,
    least_steps=900,  # accuracy leaves chance all at once, after 100 to 300 steps: fewer measure luck
    warmup=0.1,
    batch=64,
    view=View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0),
    mixing=Mixing(probability=0.0, smoothing=0.0),
    drop_path=0.0,
    norm="batch",
)
RECIPES = {
    "finetune": SMALL,
    "finetune-motion": MOTION,
    "finetune-mae": MAE_BASE,
    "finetune-mae-large": MAE_LARGE,
}


def parse(protocol: str) -> tuple[Recipe, Amount]:
    """``finetune:10%`` to a recipe and how many images have labels. Raises ValueError for what there is not."""
    name, _, wanted = protocol.partition(":")
    if name not in RECIPES:
        raise ValueError(f"there is no fine-tuning {name!r}. Use one of: {', '.join(RECIPES)}.")
    return RECIPES[name], amount(wanted)


def finetune(
    protocol: str,
    encoder: Encoder,
    train: Images,
    test: Images,
    *,
    device: torch.device,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: bool = False,
) -> Prediction:
    """The prediction of a protocol such as ``finetune:10%``; ``recipe`` replaces the settings that it names.

    ``seed`` draws labelled and held-out images, the classifier, batches and views. The encoder stays as it is.
    Raises ValueError for another protocol, or for a single class.
    """
    named, wanted = parse(protocol)
    recipe = recipe or named
    classes = train.labels.unique()
    if len(classes) < 2:
        raise ValueError("fine-tuning needs at least 2 classes among the training images, there is 1.")
    draws = 1 if wanted.everything else DRAWS
    predicted: list[Tensor] = []
    tries, n, caution = recipe.tries, 0, ""
    for number in range(draws):
        labelled = train.rows(draw_labelled(train.labels, wanted, seed=seed, draw=number))
        n = len(labelled)
        if len(tries) > 1 and int(labelled.labels.unique(return_counts=True)[1].min()) < 2:
            tries = tries[:1]
            caution = (
                f"{protocol}: with one label of a class nothing can be held out; settings were not chosen."
            )
        fit = Fit(encoder, classes, recipe, device, seed + number, progress, f"draw {number + 1} of {draws}")
        tries = (fit.choose(labelled, tries),)  # once: three fits for each later draw would say little more
        predicted.append(fit.predict(fit(labelled, *tries[0], "all"), test))
    (lr, layer_decay), *_ = tries
    settings = {
        "lr": lr,
        "layer_decay": layer_decay,
        "steps": recipe.steps(n),
        "batch": min(recipe.batch, n),
        "draws": draws,
    }
    answers = predicted[0] if draws == 1 else torch.stack(predicted)
    if lost := int((answers < 0).sum()):
        caution = (
            f"{protocol}: training diverged, and {lost} of {answers.numel()} answers are not finite, which count as "
            "wrong. The features may be too large, or the encoder close to diverging."
        )
    return Prediction(protocol, answers, settings, caution, n_train=n)
