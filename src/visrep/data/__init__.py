"""Images in: sources by index, decoding to canvases, a loader whose order is a function of (seed, step)."""

from visrep.data.canvas import CanvasSet, canvas_size
from visrep.data.loader import Loader
from visrep.data.opening import open_source
from visrep.data.source import Source, Subset
from visrep.data.split import open_splits

__all__ = ["CanvasSet", "Loader", "Source", "Subset", "canvas_size", "open_source", "open_splits"]
