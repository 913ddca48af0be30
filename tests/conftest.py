"""Before any test imports visrep: its annotations are executed. In production they cost nothing."""

from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

install_import_hook("visrep", "typechecker.check")


@pytest.fixture(autouse=True, scope="session")
def in_32_bits() -> Iterator[None]:
    """Results do not depend on what this machine's CPU can do."""
    from visrep import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "multiplies_bf16", lambda: False)
        yield
