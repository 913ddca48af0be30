"""The Hugging Face hub where there is no network: one short request finds out, not many long ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from visrep.encoders.pretrained.extras import extra

PATIENCE = 5.0
"""seconds in which it must answer"""


@contextmanager
def reached() -> Iterator[str]:
    """While it holds, libraries look only for files they already have, if the hub does not answer; yields why not.

    "" where it answers. Without this, they ask six times for each of several files and print a line each time.
    """
    silence = silent()
    constants: Any = extra("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE  # read at each request, by all of its libraries
    constants.HF_HUB_OFFLINE = before or bool(silence)
    try:
        yield silence
    finally:
        constants.HF_HUB_OFFLINE = before


def silent() -> str:
    """Why the hub does not answer one request, "" where it does."""
    hub = extra("huggingface_hub")
    errors, endpoint = extra("huggingface_hub.errors"), hub.constants.ENDPOINT
    try:
        hub.get_hf_file_metadata(endpoint, timeout=PATIENCE)
    except errors.OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, and they were not fetched before"
    except errors.HfHubHTTPError:
        return ""  # an answer, though not a page
    except Exception as error:  # of whichever library it makes requests with
        return f"{endpoint} does not answer: {' '.join(str(error).split())[:100] or type(error).__name__}"
    return ""
