"""Does a run use few of the directions it could? Its rank alone says so; whether that is a collapse, the labels say."""

from __future__ import annotations

from visrep.analysis.signs import Signs

LOW_SPREAD = 0.25
"""spread, below that of untrained networks, that counts as few directions together with `LOW_RANK`"""
COLLAPSED_RANK = 0.03
"""rank share at which few directions are in use, whatever came before"""
COLLAPSED_DIRECTIONS = 3.0
"""RankMe at which few directions are in use, however narrow the encoder: sound runs end with five and more"""
FALLEN_RANK = 0.12
"""rank share that counts as few directions when it also fell to half of its highest"""
LOW_RANK = 0.2
"""rank share that counts as few directions together with `LOW_SPREAD`"""
RISING_RANK = 1.1
"""rank, over the first one measured, from which a low one is on its way up"""


def few_directions(signs: Signs) -> bool:
    """Whether few are left, or never were there; a run that opens more while its kNN rises is on its way."""
    if not signs.rank:
        return False
    rank, highest = signs.rank[-1], max(signs.rank)
    few = rank < COLLAPSED_RANK or signs.rankme < COLLAPSED_DIRECTIONS
    fell = rank < FALLEN_RANK and rank < highest / 2
    low = rank < LOW_RANK and bool(signs.spread) and signs.spread[-1] < LOW_SPREAD
    # Sound masked methods begin with few directions and open more, and kNN follows within its error.
    opening = rank > RISING_RANK * signs.rank[0] and bool(signs.knn) and signs.knn[-1] > signs.knn[0]
    return few or fell or (low and not opening)


def directions(signs: Signs) -> str:
    """How many are in use, in words."""
    return (
        f"The features use {100 * signs.rank[-1]:.1f} % of the directions they could; the most so far was "
        f"{100 * max(signs.rank):.1f} %."
    )


def why_no_collapse(signs: Signs) -> str:
    """What the labels say of features in few directions that learned nevertheless."""
    judged = signs.judged
    if judged is not None and judged.points > signs.knn_gain:
        said = f"kNN finds {judged.end:.1f} % of {judged.queries:,} images, {judged.start:.1f} % with fresh weights"
    else:
        said = f"kNN rose from {signs.knn[0]:.1f} to {signs.knn[-1]:.1f} %"
    return f"They are narrow and not collapsed: {said}, which is beyond its error."
