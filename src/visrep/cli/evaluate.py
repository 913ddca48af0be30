"""``visrep evaluate``: judge one encoder."""

from __future__ import annotations

import tyro


def evaluate(
    run: tyro.conf.Positional[str],
    data: str,
    test: str = "",
    protocols: tuple[str, ...] = ("knn", "linear"),
    layers: tuple[int, ...] = (),
    poolings: tuple[str, ...] = ("auto",),
    baselines: bool = True,
    limit: int = 0,
    test_limit: int = 0,
    seed: int = 0,
) -> None:
    """Judge the encoder of a run on labelled images; a table here, evaluation.json in the run folder.

    Args:
        run: run folder, or a public encoder: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: labelled images: folder with a sub-folder a class (train/ and test/ or val/ above them are respected),
            .parquet, .npz, or playground
        test: held-out labelled images; default: the test or val part of data, else a fifth of it
        protocols: knn, knn-loo, linear, attentive, fewlabels, finetune, finetune-mae, finetune-mae-large; the last
            three also with few labels: finetune:10% or finetune:5 (of each class); see docs/protocols.md
        layers: layers to judge besides the last one, 1 = first
        poolings: auto, cls, mean, cls+mean
        baselines: also judge raw pixels and the untrained encoder
        limit: use only the first training images
        test_limit: use only the first test images
        seed: of splits, bootstrap and the untrained encoder
    """
    from visrep import api
    from visrep.evaluation.table import print_table

    result = api.evaluate(
        run,
        data,
        test=test or None,
        protocols=protocols,
        layers=layers,
        poolings=poolings,
        baselines=baselines,
        limit=limit,
        test_limit=test_limit,
        seed=seed,
        progress=True,
    )
    print_table(result)
