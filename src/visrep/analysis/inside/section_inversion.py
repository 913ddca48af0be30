"""The part of an explanation that turns features back into pictures: by optimisation, and by trained decoders."""

from __future__ import annotations

from typing import Any

from visrep.analysis.inside.decoder import picture_error, small
from visrep.analysis.inside.decoding import Decodings, decodings
from visrep.analysis.inside.inversion import Inversion, from_bytes, invert, to_bytes
from visrep.analysis.inside.sections_maps import tile
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.analysis.page import Section, note, strip, table

DECODED = 4
"""of the images shown"""
READING = (
    "Two ways back from patch tokens to pictures. Optimisation finds one picture with the features of the image; a "
    "decoder, trained on other images of the data, draws the average picture with these features: where it is blurred "
    "the features leave the picture open, or the decoder did not learn to read them."
)
SCORES = ("decoder", "decoder, untrained twin", "decoder, first image", "optimisation, first image")


def inversion_section(
    subject: Subject, layers: tuple[int, ...], steps: int, decoder_steps: int
) -> tuple[Section, dict[str, Any]]:
    """The first image from the patch tokens of each layer by optimisation, and several by decoders."""
    made, why = None, "none was asked for"
    if decoder_steps:
        try:
            made = decodings(subject, layers, decoder_steps)
        except Inapplicable as reason:
            why = str(reason)
    if made is None and not steps:
        raise Inapplicable(f"inversion was not asked for: give a number of steps. Decoders: {why}")
    found = {
        layer: invert(subject.encoder, subject.inputs[0], layer, steps=steps, seed=subject.seed)
        for layer in (layers if steps else ())
    }
    numbers: dict[str, Any] = {str(layer): {} for layer in layers}
    for layer, one in found.items():
        numbers[str(layer)] = {
            "features": one.features, "re-encoded": one.reencoded, "pixels": one.pixels, "start": one.start
        }  # fmt: skip
    body = _optimised(subject, found, steps) if found else ""
    if made is None:
        return Section("Pictures from features", READING, body + note(f"Decoders: {why}.")), numbers
    scores = {layer: _scores(subject, made, layer, found.get(layer)) for layer in layers}
    for layer, values in scores.items():
        numbers[str(layer)]["pictures"] = values
    return Section("Pictures from features", READING, body + _decoded(subject, made, scores)), numbers


def _optimised(subject: Subject, found: dict[int, Inversion], steps: int) -> str:
    tiles = [tile(subject.pictures[0], "image")]
    tiles += [tile(one.picture.numpy(), f"layer {layer}") for layer, one in found.items()]
    rows = [
        [str(layer), *(f"{value:.4g}" for value in (one.start, one.features, one.reencoded, one.pixels))]
        for layer, one in found.items()
    ]
    head = ("layer", "features, at the start", "features, at the end", "features, re-encoded", "pixels")
    remark = (
        f"Optimisation: pictures made from noise so that their patch tokens become those of the image, in {steps} "
        "steps. What is missing, the layer no longer knows, or the search did not find. Errors are squared and divided "
        "by the energy of the features, or by the variance of the image; 0 is the same."
    )
    return strip(tiles) + table(head, rows) + note(remark)


def _decoded(subject: Subject, made: Decodings, scores: dict[int, dict[str, float]]) -> str:
    expects = subject.encoder.preprocessing
    strips = []
    for place in range(min(DECODED, len(made.shown))):
        tiles = [tile(subject.pictures[place], "image")]
        for who, decoded in (("", made.trained), ("untrained, ", made.untrained)):
            if who and place:
                continue  # the first image is enough to see what architecture alone keeps
            for layer, one in decoded.items():
                tiles.append(tile(to_bytes(one.pictures[place], expects).numpy(), f"{who}layer {layer}"))
        strips.append(strip(tiles))
    rows = [
        [str(layer), *(f"{values[name]:.3g}" if name in values else "" for name in SCORES)]
        for layer, values in scores.items()
    ]
    rows.append(["the mean image", *("1" for _ in SCORES)])
    remark = (
        f"Decoders: trained on {made.learned} images of the data, judged on {made.held_out} others that they never "
        f"saw, nor the images shown; {made.mean.shape[-1]} pixels a side. Errors of this table are squared and divided "
        "by the distance from the mean training image, which stands for knowing nothing of an image."
    )
    return "".join(strips) + table(("layer", *SCORES), rows) + note(remark)


def _scores(subject: Subject, made: Decodings, layer: int, found: Inversion | None) -> dict[str, float]:
    one = made.trained[layer]
    values = {"decoder": one.error, "decoder, first image": one.first}
    if layer in made.untrained:
        values["decoder, untrained twin"] = made.untrained[layer].error
    if found is not None:
        picture = small(from_bytes(found.picture, subject.encoder.preprocessing)[None])
        values["optimisation, first image"] = picture_error(picture, made.shown[:1], made.mean)
    return values
