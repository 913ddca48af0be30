"""Before any test imports visrep: its annotations are executed. In production they cost nothing."""

from jaxtyping import install_import_hook

install_import_hook("visrep", "typechecker.check")
