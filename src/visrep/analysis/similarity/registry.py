"""Every similarity there is, in the order of tables."""

from __future__ import annotations

from visrep.analysis.similarity.base import Similarity
from visrep.analysis.similarity.cca import CCA, PWCCA, SVCCA
from visrep.analysis.similarity.cka import CKA, CKA_BIASED, CKA_MINIBATCH
from visrep.analysis.similarity.neighbours import MUTUAL_KNN
from visrep.analysis.similarity.procrustes import PROCRUSTES
from visrep.analysis.similarity.rsa import RSA

SIMILARITIES: tuple[Similarity, ...] = (
    CKA, MUTUAL_KNN, PROCRUSTES, RSA, CCA, SVCCA, PWCCA, CKA_BIASED, CKA_MINIBATCH
)  # fmt: skip
USUAL = ("cka", "mutual-knn", "procrustes", "rsa", "cca", "svcca", "pwcca")


def similarities(names: tuple[str, ...]) -> list[Similarity]:
    """Those of these names, in the order of tables. Raises ValueError with the names there are."""
    known = {similarity.name: similarity for similarity in SIMILARITIES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"There is no similarity {unknown[0]!r}. Available: {', '.join(known)}.")
    return [similarity for name, similarity in known.items() if name in names]
