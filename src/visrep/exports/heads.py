"""The weights of a run that are not the encoder's: projection heads, teachers, decoders, queues."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from visrep.method import Encoder
from visrep.methods import load_method, method_class
from visrep.rundir import RunFolder

FILE = "heads.safetensors"


def write_heads(run: Path, encoder: Encoder, folder: Path) -> list[str]:
    """Write ``heads.safetensors``; returns the names of the parts in it.

    Raises ValueError when ``run`` is no run folder or has no checkpoint, and when its checkpoint is of another moment
    than its encoder.
    """
    weights, name = other_weights(run, encoder)
    save_file(weights, folder / FILE, metadata={"method": name, "made by": "visrep"})
    return sorted({key.split(".")[0] for key in weights})


def other_weights(run: Path, encoder: Encoder) -> tuple[dict[str, Tensor], str]:
    """Everything in the checkpoint but the encoder, and the name of the method."""
    folder = RunFolder(run)
    name = folder.about()["method"]
    module = load_method(name)
    method = method_class(module)(folder.run().method)
    state = folder.load_checkpoint()["method"]
    prefixes = [
        prefix for prefix, part in method.named_modules(remove_duplicate=False) if part is method.encoder
    ]
    for prefix in prefixes:
        _check_same(encoder, state, prefix, folder)
    own = tuple(f"{prefix}." for prefix in prefixes)
    # copies: safetensors refuses tensors that share memory
    return {key: x.detach().clone().contiguous() for key, x in state.items() if not key.startswith(own)}, name


def _check_same(encoder: Encoder, state: dict[str, Tensor], prefix: str, folder: RunFolder) -> None:
    for key, x in encoder.state_dict().items():
        there = state.get(f"{prefix}.{key}")
        if there is None or not torch.equal(there, x):
            raise ValueError(
                f"checkpoint.pt in {folder.path} is of another moment than encoder.safetensors: {key} differs. "
                f"{_what_to_do(folder)}"
            )


def _what_to_do(folder: RunFolder) -> str:
    if folder.about()["status"] != "stopped":
        return f"Let the run finish (`visrep pretrain --resume {folder.path}`), or export without --heads."
    adapt, guard = folder.run().adapt, folder.run().guard
    if guard.act == "rollback":
        return (
            "The guard ended the run and kept the encoder of an earlier moment, the best one; other weights "
            "of that moment were not kept. Export without --heads, or train again with --guard.act stop."
        )
    return (
        "The guard ended the run "
        + (
            "before its low-rank additions were added up in the checkpoint. "
            if adapt.lora_rank
            else "early. "
        )
        + "Export without --heads."
    )
