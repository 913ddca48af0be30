"""``visrep explain``: look inside an encoder."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.console import Console


def explain(
    encoder: tyro.conf.Positional[str],
    data: str,
    image: int = 0,
    images: int = 6,
    point: tuple[float, float] | None = None,
    layers: tuple[int, ...] = (),
    steps: int = 200,
    decoder_steps: int = 400,
    out: Path = Path("explain"),
    seed: int = 0,
) -> None:
    """What does an encoder look at, and what does it know? A page in OUT/explain.html, numbers in OUT/explain.json.

    Args:
        encoder: run folder, or a public encoder: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: images; labels add a probe and its classes, masks (images/ and masks/, playground) concepts of channels
        image: number of the image that is looked at most closely
        images: shown beside each other
        point: across and down, as shares of the image: the patch that others are compared with; default: four of them
        layers: turned back into pictures besides the last, 1 = first; default: the first and the middle one
        steps: of turning features back into pictures by optimisation, 0 for none
        decoder_steps: of training each decoder of features into pictures, 0 for none
        out: folder
        seed: of the probe, of noise and of figures
    """
    from visrep import api

    explanation = api.explain(
        encoder,
        data,
        image=image,
        images=images,
        point=point,
        layers=layers,
        steps=steps,
        decoder_steps=decoder_steps,
        out=out,
        seed=seed,
        progress=True,
    )
    console = Console()
    for section in explanation.sections:
        console.print(section.title, highlight=False)
    for name, reason in explanation.numbers["left out"].items():
        console.print(f"! {name} left out: {reason}", style="yellow", highlight=False, markup=False)
    Console(stderr=True).print(
        f"Look at it: {(out / 'explain.html').resolve()}", highlight=False, markup=False
    )
