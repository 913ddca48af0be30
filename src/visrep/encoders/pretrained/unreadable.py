"""Why a file is no checkpoint: told from its first bytes, and from what the reader of its format says."""

from __future__ import annotations

import re
from pathlib import Path

SIGNS = (
    (rb"$", "is empty"),
    (rb"version https://git-lfs", "is a git-lfs pointer: some lines that stand for the file"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|\?xml|html|head)", "is a web page"),
    (rb"\xff\xd8\xff|\x89PNG\r\n", "is a picture"),
)
"""how a file begins, and what it then is"""
AGAIN = "Fetch it again, from the link to the file itself, and compare its size."


def check_beginning(path: Path) -> None:
    """Raises ValueError for a file that begins like something else than a checkpoint, saying what it is."""
    with path.open("rb") as file:
        beginning = file.read(64)
    for pattern, what in SIGNS:
        if re.match(pattern, beginning, re.IGNORECASE):
            raise ValueError(f"{path} {what}, and no checkpoint. {AGAIN}")


def of_torch(path: Path, error: Exception) -> ValueError:
    """What is wrong with a file that ``torch.load`` refused, without its advice to run what is in it."""
    said = str(error)
    if refused := re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", said, re.IGNORECASE):
        return ValueError(
            f"{path} cannot be read: it holds Python objects besides weights ({refused[1]}), which may run code. If "
            "you trust it, save only its weights with torch.save."
        )
    if "TorchScript" in said:
        return ValueError(
            f"{path} cannot be read: it is a TorchScript archive, which holds code. If you trust it, save its weights: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pth')."
        )
    # others name bytes and opcodes; after the first sentence torch guesses
    reason = f" ({first_line(error).partition('. ')[0]})" if isinstance(error, RuntimeError) else ""
    return ValueError(f"{path} cannot be read{reason}: it is torn, or no checkpoint of torch. {AGAIN}")


def of_safetensors(path: Path, error: Exception) -> ValueError:
    """What is wrong with a file that safetensors refused."""
    return ValueError(
        f"{path} cannot be read ({first_line(error)}): it is torn, or no safetensors file. {AGAIN}"
    )


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
