"""The parts of an explanation that ask for the causes of a class: gradients, and the probe read in early layers."""

from __future__ import annotations

from typing import Any

import torch

from visrep.analysis.figures import Line, curves
from visrep.analysis.inside.gradients import full_gradients, saliency
from visrep.analysis.inside.lens import class_lens
from visrep.analysis.inside.sections_maps import over, pairs, tile
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.analysis.page import Section, figure, grid, note
from visrep.views import center

READ = 200
"""images in which the probe is read, at most"""


def gradient_section(subject: Subject) -> tuple[Section, dict[str, Any]]:
    """Saliency and, where it is complete, FullGrad of each image's likeliest class."""
    targets = [subject.target(place) for place, _ in subject.each()]
    terms = [
        full_gradients(subject.encoder, head, image, output)
        for image, (head, output) in zip(subject.inputs, targets, strict=True)
    ]
    whole, gap = all(found.complete for found in terms), max(found.gap for found in terms)
    rows = []
    for place, (head, output) in enumerate(targets):
        slope = saliency(subject.encoder, head, subject.inputs[place], output)
        tiles = [
            tile(subject.pictures[place], head.names[output]),
            tile(over(subject, place, slope), "saliency"),
        ]
        rows.append([*tiles, tile(over(subject, place, terms[place].map()), "FullGrad")] if whole else tiles)
    what = (
        "the logit of the likeliest class, by a linear probe,"
        if subject.head is not None
        else "the length of its features"
    )
    reading = f"Which pixels {what} depends on, image by image: the largest derivative by a colour channel"
    reading += ", and FullGrad, whose terms add up to the output." if whole else "."
    remark = (
        f"FullGrad: the terms add up to the output within {gap:.1e} of their size."
        if whole
        else "FullGrad is left out: this network is not piecewise linear, and the terms miss the output by "
        f"{gap:.1e} of their size, which is more than rounding."
    )
    outputs = [{"output": found.output, "sum of terms": found.sum, "gap": found.gap} for found in terms]
    return Section("Gradients", reading, pairs(rows) + note(remark)), {"FullGrad": outputs, "complete": whole}


def class_section(subject: Subject) -> tuple[Section, dict[str, Any]]:
    """How early, and in which tokens, the class can be read."""
    head, labelled = subject.head, subject.labelled
    if head is None or labelled is None or labelled.labels is None:
        raise Inapplicable("a probe of classes needs labels, at least two classes and two images of each")
    held_out = torch.from_numpy(subject.split[1][:READ])
    index = labelled.index[held_out].numpy()
    images = center(subject.sample.get(index), subject.encoder.preprocessing).to(subject.device)
    classes = labelled.labels[torch.from_numpy(subject.split[0])].unique()
    label = torch.searchsorted(classes, labelled.labels[held_out])
    try:
        lens = class_lens(subject.encoder, head, images, label.to(subject.device))
    except ValueError as problem:
        raise Inapplicable(str(problem).rstrip(".")) from problem
    layers = [float(i) for i in range(1, subject.encoder.depth + 1)]
    patches = lens.patches.double().mean((1, 2)).tolist()
    lines = [Line(layers, patches, "patch tokens")]
    numbers: dict[str, Any] = {"patches": patches, "top-1": lens.top_1.tolist(), "images": len(images)}
    if lens.cls is not None:
        numbers["cls"] = lens.cls.double().mean(1).tolist()
        lines.append(Line(layers, numbers["cls"], "cls token"))
    panels = [
        figure(curves(lines, x_label="layer", limit=0.5, limit_label="chance"), "Identifiability:",
               "1 where the right class has the highest logit"),
        figure(curves([Line(layers, [100 * v for v in numbers["top-1"]], "pooled tokens")], x_label="layer"), "Top-1:",
               "%, of the last layer's probe read in each layer"),
    ]  # fmt: skip
    reading = (
        f"The last layer's linear probe, applied to the tokens of every layer, on {len(images)} images that it was not "
        "fitted on. A rise in early layers says that the class is already written in the last layer's terms."
    )
    return Section("Classes in layers", reading, grid(panels, kind="panels")), numbers
