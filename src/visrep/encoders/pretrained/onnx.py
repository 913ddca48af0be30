"""ONNX files as encoders, for evaluation only: those that this project writes, and other tools' by their shapes.

A file needs one input of images "b 3 h w". Its features are an output "b d", tokens "b n d" (cls and registers first)
or a map "b d rows columns"; of several outputs one of the usual names, or the one named behind the file's name:
``model.onnx@last_hidden_state``.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from visrep.config import from_json
from visrep.encoders.checks import NoFreshWeights, check_images, check_layers, check_whole
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.onnx_shapes import NUMBERS, expected, front_tokens, the_input, the_output
from visrep.method import Encoder, Preprocessing, Tokens

KEY = "visrep"
"""of what this project writes into a file's metadata"""


@dataclass(frozen=True)
class OnnxFile:
    """A file, and the output that its features are, "" to choose."""

    path: str
    output: str = ""
    architecture: str = ""
    """JSON of the configuration that it was exported from, "" where that is not known"""

    def build(self) -> Encoder:
        """The architecture with fresh weights. Raises NoFreshWeights where the file does not say what it is."""
        if not self.architecture:
            raise NoFreshWeights(
                f"{Path(self.path).name} does not say what it was exported from: there is no untrained twin."
            )
        return from_json(json.loads(self.architecture)).build()


@final
class OnnxEncoder(Encoder):
    """See `OnnxFile`. It has one layer, the last, and cannot be trained.

    Raises ValueError for files whose input or output is not understood, with what they have.
    """

    digest: Tensor
    """of the file: it stands for the weights where encoders are told apart"""

    def __init__(self, config: OnnxFile) -> None:
        super().__init__()
        path = Path(config.path)
        self.session = opened(path)
        said = json.loads(self.session.get_modelmeta().custom_metadata_map.get(KEY, "{}"))
        self.config = OnnxFile(config.path, config.output, json.dumps(said["architecture"]) if said else "")
        self.register_buffer("digest", torch.frombuffer(bytearray(_digest(path)), dtype=torch.uint8))
        self.input = the_input(self.session, path)
        self.batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else 0
        self.preprocessing = from_json(said["preprocessing"]) if said else expected(self.input, path)
        self.depth, self.own = 1, bool(said) and not config.output
        self.cls = said.get("pooling") == "cls"
        self.names = [output.name for output in self.session.get_outputs()]
        seen = self._run(
            torch.zeros(1, *_clip(self.preprocessing), self.preprocessing.size, self.preprocessing.size)
        )
        self.output = "" if self.own else the_output(seen, config.output, path)
        self.front = 0 if self.own else front_tokens(seen[self.output], path)
        grid = self._tokens(seen, self.preprocessing.size, self.preprocessing.size)
        self.width = grid.patches.shape[-1]
        self.stride = said.get("stride", self.preprocessing.size // grid.grid[-1])
        self.eval()

    def train(self, mode: bool = True) -> OnnxEncoder:
        """Raises ValueError unless evaluation is asked for."""
        if mode:
            raise ValueError(
                f"{self.config.path} is an ONNX file: it can be judged and used, not trained. Train the run that it "
                "was exported from, or a model of timm or transformers."
            )
        super().train(False)
        return self

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images, without gradients; see `Encoder.forward`. Raises ValueError for keep, mask and attention."""
        check_whole("ONNX file", keep, mask, attention)
        check_layers(layers, self.depth)
        if not self.preprocessing.frames:
            check_images(images, 3)
        parts = images.split(self.batch) if self.batch else (images,)
        ran = [self._run(part) for part in parts]
        joined = {name: torch.cat([part[name] for part in ran]) for name in ran[0]}
        tokens = self._tokens(joined, images.shape[-2], images.shape[-1])
        return Tokens(tokens.patches, tokens.grid, tokens.cls, tokens.registers, (tokens,) * len(layers))

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """All outputs for at most one batch; a file of a fixed batch gets copies of the last image to fill it."""
        n = len(images)
        if self.batch > n:
            images = torch.cat([images, images[-1:].expand(self.batch - n, *images.shape[1:])])
        pixels = images.detach().cpu().numpy().astype(NUMBERS[self.input.type])
        found = self.session.run(None, {self.input.name: pixels})
        return {
            name: torch.from_numpy(np.asarray(x)).float()[:n].to(images.device)
            for name, x in zip(self.names, found, strict=True)
        }

    def _tokens(self, found: dict[str, Tensor], height: int, width: int) -> Tokens:
        if self.own:
            maps = found["patches"]
            patches = maps.flatten(2).transpose(1, 2)
            return Tokens(
                patches,
                tuple(maps.shape[2:]),
                found["features"] if self.cls else None,
                found.get("registers"),
            )
        x = found[self.output]
        if x.ndim == 2:  # one vector an image
            return Tokens(x[:, None], (1, 1), x)
        if x.ndim == 4:
            return Tokens(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))
        front, patches = x[:, : self.front], x[:, self.front :]
        rows = round(math.sqrt(patches.shape[1] * height / width))
        grid = (rows, patches.shape[1] // rows)
        if math.prod(grid) != patches.shape[1] or height * grid[1] != width * grid[0]:
            raise ValueError(
                f"{patches.shape[1]} patches of an image of {height} x {width} pixels: their rows and columns are not "
                "clear. Use square images."
            )
        registers = front[:, 1:] if self.front > 1 else None
        return Tokens(patches, grid, front[:, 0] if self.front else None, registers)


def load_onnx(name: str) -> OnnxEncoder:
    """The encoder in ``FILE.onnx``, or in its output ``FILE.onnx@OUTPUT``.

    Raises FileNotFoundError, ImportError without the extra, and ValueError for files that are not understood.
    """
    path, _, output = name.partition("@") if not Path(name).is_file() else (name, "", "")
    if not Path(path).is_file():
        raise FileNotFoundError(f"No file {path}. Give an ONNX file, perhaps with @OUTPUT behind it.")
    return OnnxEncoder(OnnxFile(path, output))


def is_onnx(name: str) -> bool:
    """Whether a name is that of an ONNX file."""
    return name.partition("@")[0].endswith(".onnx") or name.endswith(".onnx")


def opened(path: Path) -> Any:
    """A session of onnxruntime with torch's number of threads, on CUDA where it has it."""
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions have no common class but this
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read by onnxruntime: {reason}") from error


def _clip(seen: Preprocessing) -> tuple[int, ...]:
    return (seen.frames, 3) if seen.frames else (3,)


def _digest(path: Path) -> bytes:
    beside = path.with_name(path.name + ".data")  # weights of large models
    parts = [part.read_bytes() for part in (path, beside) if part.is_file()]
    return hashlib.sha256(b"".join(parts)).digest()
