"""A sheet of results as one self-contained HTML page: of any encoder that was judged, trained here or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from visrep.analysis.gallery import Inapplicable, Missing
from visrep.analysis.page import Section, document, grid, note
from visrep.analysis.report_dense import READING, predictions
from visrep.analysis.report_fingerprint import COMPARABLE, fingerprint
from visrep.analysis.report_probes import cards, in_words, judged, judgement
from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.sheet_pictures import read_pictures


def report_sheet(evaluation: Evaluation, path: Path) -> Path:
    """Write the page of the sheet in file ``path`` beside it, ``.html`` for ``.json``; returns its path.

    Raises ValueError for a sheet without a number of an encoder.
    """
    if not any(result.encoder == "trained" for result in evaluation.results):
        raise ValueError(
            f"{path} holds no number of an encoder. Judge one: visrep evaluate ENCODER --data FOLDER --out {path}."
        )
    sheet = evaluation.to_json()
    sections = [
        Section(
            "Results",
            "An encoder was worth it where its interval lies above both the same network untrained and raw pixels "
            "(green row); of errors less is better.",
            judged(sheet),
        ),
        *_pictures(sheet, path),
        Section("How it was judged", COMPARABLE, fingerprint(sheet)),
    ]
    out = path.with_suffix(".html")
    temporary = out.with_name(out.name + ".part")
    temporary.write_text(document(path.stem, _header(sheet, path), sections), encoding="utf-8")
    temporary.replace(out)
    return out


def _header(sheet: Mapping[str, Any], path: Path) -> str:
    results, weights = sheet["results"], sheet["fingerprint"].get("encoder", "unknown")
    better, others = judgement(results)
    n = len(better) + len(others)
    title = f"Clearly better than its baselines in {len(better)} of {n} protocols" if n else "Judged alone"
    kind = "healthy" if better else "early"
    words = in_words(better, others) or "Without baselines, nothing says whether these numbers are good."
    return (
        f"<h1>{escape(path.stem)}</h1><p class=soft>{escape(f'{path.name} · weights {weights}')}</p>"
        f'<div class="verdict {kind}"><b>{escape(title)}</b><dl><dt>Judged</dt><dd>{escape(words)}</dd>'
        f"<dt>Images</dt><dd>{escape(sheet['split'])}</dd></dl></div>{grid(cards(results), kind='cards')}"
    )


def _pictures(sheet: Mapping[str, Any], path: Path) -> list[Section]:
    """None where no dense protocol was asked for."""
    try:
        return [Section("Dense predictions", READING, predictions(sheet, read_pictures(path)))]
    except Missing as missing:
        return [Section("Dense predictions", READING, note(str(missing)))]
    except Inapplicable:
        return []
