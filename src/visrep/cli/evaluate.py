"""``visrep evaluate``: judge one encoder."""

from __future__ import annotations

from typing import Literal

import tyro


def evaluate(
    run: tyro.conf.Positional[str],
    data: str,
    test: str = "",
    protocols: tuple[str, ...] = ("knn", "linear"),
    layers: tuple[str, ...] = (),
    poolings: tuple[str, ...] = ("auto",),
    baselines: bool = True,
    limit: int = 0,
    test_limit: int = 0,
    size: int = 0,
    read_out: Literal["tokens", "pyramid"] = "tokens",
    keep: bool = True,
    out: str = "",
    seed: int = 0,
) -> None:
    """Judge the encoder of a run on labelled images or on masks; a table here, evaluation.json in the run folder.

    Args:
        run: run folder, or a public encoder: checkpoint or ONNX file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: labelled images: folder with a sub-folder a class (train/ and test/ or val/ above them are respected),
            .parquet, .tar, .npz, or playground; for dense protocols a folder with images/ and masks/, or with
            JPEGImages/ and Annotations/, or playground
        test: held-out labelled images; default: the test or val part of data, else a fifth of it
        protocols: all (that leave the encoder as it is), or some of: knn, knn-loo, linear, linear-dino, linear-dinov2,
            linear-mae, fewlabels, attentive, attentive-vjepa, attentive-efficient, episodes, clustering, retrieval,
            retrieval-within, copies, corruptions, shifts, backgrounds, ood-layers, finetune, finetune-mae,
            finetune-mae-large, finetune-motion; these and knn also with few labels: finetune:10% or knn:5 (of each
            class). By name only: attentive-aim and attentive-vjepa2 (hours without an accelerator), logreg,
            fewshot-ridge, and, chosen on test images, @paper behind linear-dino, linear-dinov2, linear-mae,
            attentive-vjepa2 and attentive-efficient. On images with masks: segmentation, hummingbird, depth,
            attention-masks, discovery-lost, discovery-tokencut, propagation, correspondence; by name only, as
            published: segmentation-dinov3 and depth-dinov3 (hours), discovery-lost@native, discovery-tokencut@native
            and propagation-dino. See docs/protocols.md
        layers: layers to judge besides the last one, 1 = first, or all
        poolings: auto, cls, mean, cls+mean, last-4
        baselines: also judge raw pixels and the untrained encoder
        limit: use only the first training images
        test_limit: use only the first test images
        size: side in pixels of the squares that dense protocols see; default: twice that of the encoder; of crops of
            segmentation-dinov3 (512) and of the shorter side of images of depth-dinov3 (480)
        read_out: what the probes of dense protocols read: the patches of a layer, or maps of several resolutions
        keep: keep features in the run folder, so that another call needs no pass over the images
        out: .json file for the results, for visrep report and compare; default: evaluation.json in the run folder, and
            none for a public encoder
        seed: of splits, bootstrap and the untrained encoder
    """
    from visrep import api
    from visrep.cli.typed import typed
    from visrep.evaluation.table import print_table

    result = api.evaluate(
        run,
        data,
        test=test or None,
        protocols=protocols,
        layers="all" if layers == ("all",) else tuple(map(number, layers)),
        poolings=poolings,
        baselines=baselines,
        limit=limit,
        test_limit=test_limit,
        size=size,
        read_out=read_out,
        keep=keep,
        out=out or None,
        seed=seed,
        progress=True,
        command=typed("evaluate"),
    )
    print_table(result)
    if result.unjudged:
        raise ValueError(
            f"{', '.join(result.unjudged)} could not be judged, the rest was. {' '.join(result.unjudged.values())}"
        )


def number(layer: str) -> int:
    """Raises ValueError for what is no number."""
    if not layer.isdecimal():
        raise ValueError(f"--layers {layer}: write numbers of layers, 1 for the first, or all.")
    return int(layer)
