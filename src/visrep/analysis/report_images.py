"""The parts of a report that look at images: map, neighbours, attention, tokens, pictures, spectrum."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import numpy as np
from jaxtyping import UInt8

from visrep.analysis.figures import COLOURS, scatter, spectrum_plot
from visrep.analysis.gallery import Gallery, Inapplicable, Missing
from visrep.analysis.page import figure, folded, grid, image, note, sheet, strip
from visrep.analysis.pictures import clip_uri, data_uri, fit, heat, image_map, token_colours
from visrep.analysis.record import RunRecord
from visrep.analysis.spectra import participation_ratio, rankme, sample_caution, spectrum
from visrep.encoders import ViTLike

QUERIES, NEIGHBOURS = 10, 6
EXAMPLES = 6
"""images with attention maps"""
TILE = 112
"""side of a picture with attention or tokens, in pixels"""
HEADS = 6
"""attention heads shown at most"""
SMALLEST_GRID = 4
"""patches a side below which colours of tokens show nothing"""


def spectrum_section(gallery: Gallery) -> str:
    """How the variance of the features is shared among directions."""
    n, d = gallery.features.shape
    try:
        drawing, axes_for_90 = spectrum_plot(spectrum(gallery.features).tolist())
    except ValueError as problem:
        raise Missing(f"No spectrum: {problem}") from problem
    caution = sample_caution(n, d)
    said = (
        f"{axes_for_90} of {min(n - 1, d)} axes hold 90 % of the variance; participation ratio "
        f"{participation_ratio(gallery.features):.1f}, RankMe {rankme(gallery.features):.1f} on these {n} "
        f"images. {caution}"
    )
    return figure(drawing, kind="chart") + note(said)


def map_section(gallery: Gallery) -> str:
    """Images in the plane, as points and as pictures."""
    points, trust = gallery.map()
    groups, names = gallery.groups
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    what = "label" if gallery.labels is not None else "cluster (k-means; the images have no labels)"
    drawn = scatter(points, groups, names)
    tiles = image(
        data_uri(image_map(points, gallery.thumbnails)), "images at their place on the map", kind="bare"
    )
    rest = f" The {len(names) - len(COLOURS)} rarest labels are grey." if len(names) > len(COLOURS) else ""
    said = (
        f"{len(gallery)} {_kind(gallery)} images of {gallery.name}, coloured by {what}.{rest} "
        f"Trustworthiness {trust:.2f}: at 1 all neighbours on the map are neighbours in the features. "
        "Distances between far groups mean nothing."
    )
    return grid([figure(drawn), figure(tiles)], kind="halves") + note(said)


def neighbour_section(gallery: Gallery) -> str:
    """A few images, each with the images the encoder finds most similar."""
    k = min(NEIGHBOURS, len(gallery) - 1)
    if k < 1:
        raise Missing("Neighbours need at least two images.")
    neighbours = gallery.neighbours(k)
    strips = [_neighbour_strip(gallery, int(i), neighbours[i]) for i in gallery.examples(QUERIES)]
    body = sheet(strips, columns=1 + k)
    if gallery.labels is None:
        return body + note(
            "The images have no labels, so whether neighbours belong together is for you to judge."
        )
    same = float((gallery.labels[neighbours] == gallery.labels[:, None]).mean())
    _, counts = np.unique(gallery.labels, return_counts=True)
    n = len(gallery)
    chance = float((counts * (counts - 1)).sum() / (n * (n - 1)))
    legend = (
        '<p class="soft"><span class="key"></span>same label<span class="key other"></span>another label</p>'
    )
    said = (
        f"Over all {n} images {100 * same:.0f} % of the {k} nearest neighbours share the label; "
        f"chance is {100 * chance:.0f} %."
    )
    return legend + body + note(said)


def _neighbour_strip(gallery: Gallery, query: int, neighbours: np.ndarray) -> str:
    tiles = [_tile(gallery, query, "query", "the image itself", kind="first")]
    for i in neighbours:
        similarity = f"cosine {gallery.similarities[query, i]:.2f}"
        style = ""
        if gallery.labels is not None:
            style = "same" if gallery.labels[i] == gallery.labels[query] else "other"
        tiles.append(_tile(gallery, int(i), style, similarity))
    return strip(tiles)


def _tile(gallery: Gallery, i: int, style: str, remark: str, *, kind: str = "") -> str:
    label = gallery.classes[int(gallery.labels[i])] if gallery.labels is not None else ""
    description = ", ".join(filter(None, (label, remark, gallery.keys[i])))
    return figure(image(data_uri(gallery.thumbnails[i]), description, kind=style), label, kind=kind)


def view_section(record: RunRecord) -> str:
    """What the method was shown during training."""
    if "views" not in record.pictures:
        raise Missing("No sample views are stored; they are written at the end of a run.")
    return _drawn(record, "views")


def picture_section(record: RunRecord) -> str:
    """What the method itself draws: reconstructions and the like."""
    if not record.pictures:
        raise Missing("No pictures are stored yet; they are written at the end of a run.")
    drawn = [name for name in record.pictures if name != "views"]
    if not drawn:
        raise Inapplicable("this method draws no pictures of its own")
    return "".join(f"<h3>{escape(name.capitalize())}</h3>{_drawn(record, name)}" for name in drawn)


def _drawn(record: RunRecord, name: str) -> str:
    """Pictures below what their columns show; clips play, and below them all of their frames stand still."""
    pictures, caption = record.pictures[name], record.captions.get(name, "")
    said = note(caption) if caption else ""
    if pictures.ndim == 5:
        return said + _sheet(pictures, data_uri)
    side = min(TILE, pictures.shape[-2])
    small = np.stack([fit(frame, side) for frame in pictures.reshape(-1, *pictures.shape[3:])])
    clips = small.reshape(*pictures.shape[:3], side, side, 3)
    strips = [
        strip(
            [figure(image(data_uri(frame), f"column {i + 1}, frame {t + 1}")) for t, frame in enumerate(clip)]
        )
        for row in clips
        for i, clip in enumerate(row)
    ]
    still = folded("Frame by frame, a strip for each column", grid(strips, kind="frames"))
    return said + _sheet(clips, clip_uri) + still


def _sheet(pictures: UInt8[np.ndarray, "rows columns *t h w 3"], uri: Callable[[np.ndarray], str]) -> str:
    strips = [
        strip(
            [
                figure(image(uri(picture), f"column {i + 1}"), kind="" if i else "first")
                for i, picture in enumerate(row)
            ],
            kind="large",
        )
        for row in pictures
    ]
    return sheet(strips, columns=pictures.shape[1])


def attention_section(gallery: Gallery) -> str:
    """Where the last block looks, for a few images: the mean over heads, then single heads."""
    config = gallery.encoder.config
    if not (isinstance(config, ViTLike) and config.has_attention):
        raise Inapplicable("attention maps are drawn of transformers for images that compare their tokens")
    chosen = gallery.examples(EXAMPLES)
    tokens = gallery.tokens(chosen, attention=True)
    assert tokens.attention is not None, "a ViT asked for attention returns it"
    last = tokens.attention[-1].float().numpy()  # b h n n
    patches = tokens.patches.shape[1]
    # From the cls token to the patches where there is one, else what all patches together attend to.
    looks = last[:, :, 0, -patches:] if tokens.cls is not None else last[:, :, :, -patches:].mean(2)
    rows, columns = tokens.grid[-2:]
    maps = looks.reshape(*looks.shape[:2], rows, columns)
    strips = []
    for picture, heads in zip(gallery.seen(chosen), maps, strict=True):
        large = fit(picture, TILE)
        shown = [large, heat(large, heads.mean(0)), *(heat(large, head) for head in heads[:HEADS])]
        names = ["image", "mean", *(f"head {i + 1}" for i in range(len(heads[:HEADS])))]
        tiles = [
            figure(image(data_uri(tile), name), name, kind="" if i else "first")
            for i, (tile, name) in enumerate(zip(shown, names, strict=True))
        ]
        strips.append(strip(tiles, kind="large"))
    source = "the cls token" if tokens.cls is not None else "all patches together"
    return sheet(strips, columns=2 + min(HEADS, maps.shape[1])) + note(
        f"Attention of {source} in the last of {gallery.encoder.depth} blocks, {rows} x {columns} patches; "
        "each map has its own scale."
    )


def token_section(gallery: Gallery) -> str:
    """The patch tokens of a few images in the colours of their first three principal components."""
    chosen = gallery.examples(2 * EXAMPLES)
    tokens = gallery.tokens(chosen, attention=False)
    rows, columns = tokens.grid[-2:]
    if min(rows, columns) < SMALLEST_GRID:
        raise Inapplicable(f"a last map of {rows} x {columns} cells shows nothing")
    colours = token_colours(tokens.patches.float().numpy(), (rows, columns))
    pairs = []
    for picture, colour in zip(gallery.seen(chosen), colours, strict=True):
        tiles = [
            figure(image(data_uri(fit(tile, TILE)), name))
            for name, tile in (("image", picture), ("tokens", colour))
        ]
        pairs.append(strip(tiles, kind="pair"))
    return grid(pairs, kind="pairs")


def _kind(gallery: Gallery) -> str:
    return "held-out" if gallery.held_out else "training"
