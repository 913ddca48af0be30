"""The page of a sheet: what was judged, with whose numbers, how far to trust them; and the mistakes one can make."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from test_compare_sheets import row, sheet, written
from test_dense_pictures import example
from test_report import Page, write_run
from visrep import api
from visrep.analysis.gallery import Inapplicable, Missing
from visrep.analysis.record import read_run
from visrep.analysis.report import FROM_RECORD, ORDER
from visrep.analysis.report_dense import dense_predictions
from visrep.analysis.report_fingerprint import how_it_was_judged
from visrep.cli.report import the_only
from visrep.evaluation.examples import strips
from visrep.evaluation.sheet_pictures import save_pictures


def test_a_sheet_has_a_page_of_its_results_and_nothing_of_training(tmp_path: Path) -> None:
    judged = sheet(
        *(row("linear", value, layer=layer) for layer, value in ((3, 80.0), (2, 85.0), (1, 40.0))),
        *(row("linear", value, layer=layer, kind="untrained") for layer, value in ((3, 30.0), (2, 35.0), (1, 38.0))),
        row("linear", 25.0, layer=0, kind="pixels", pooling="none"),
        row("attentive", 50.0, pooling="tokens", settings={"lr": 0.003, "steps": 3000}),
    )  # fmt: skip
    judged.warnings.append("only 20 test images: <wide>")
    path = written(tmp_path / "of" / "net-a.json", judged)
    out = api.report(path)
    assert out == tmp_path / "of" / "net-a.html" and [*out.parent.iterdir()] == sorted([out, path])
    page = Page(out)
    assert not page.outside and [*page.text] == ["", "results", "how-it-was-judged"]
    assert "net-a" in page.text[""] and "weights e" in page.text[""] and "made up" in page.text[""]
    assert "Clearly better than its baselines in 1 of 1 protocols" in page.text[""]
    assert "80.0 %" in page.text[""] and "untrained 30.0, raw pixels 25.0" in page.text[""]
    results = page.text["results"]
    assert "best at layer 2 with 85.0 %" in results and "80.0  [77.0, 83.0]" in results
    assert "+50.0" in results and "<wide>" in results
    how = page.text["how-it-was-judged"]
    assert "train.content" in how and "test.images20" in how and "lr 0.003, steps 3000" in how
    assert "attentive probe was judged with settings of version 1; today's are of version 2" in how
    alone = written(tmp_path / "b.json", sheet(row("knn", 50.0)))
    assert "Judged alone" in Page(api.report(alone)).text[""]
    content = alone.read_text()
    assert api.report(alone).read_bytes() == api.report(alone).read_bytes() and alone.read_text() == content


def test_records_have_pages(tmp_path: Path) -> None:
    """Old ones too, which have no pictures of dense results."""
    record = Path(__file__).parents[1] / "records" / "sheets" / "mobilenet_v2-coco128.json"
    (tmp_path / record.name).write_bytes(record.read_bytes())
    page = Page(api.report(tmp_path / record.name))
    assert "no pictures of linear segmentation" in page.text["dense-predictions"]
    assert "in parts" in page.text["results"]


def test_pictures_of_dense_results_stand_on_the_page(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", sheet(row("segmentation", 30.0, pooling="tokens", metric="mIoU")))
    drawn = strips({"trained": [example(0, sea="#010203"), example(1)], "pixels": [example(2), example(3)]})
    save_pictures(path, {"segmentation": drawn, "depth": drawn})
    out = api.report(path)
    page = Page(out)
    said = page.text["dense-predictions"]
    assert "Linear segmentation" in said and "Colours are classes" in said and "sea" in said
    assert "depth" not in said  # of numbers that are no longer on the sheet
    assert page.images == ["image", "true classes", "trained", "raw pixels"] * 2
    assert "background:#010203" in out.read_text()
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', out.read_text())
    for uri, picture in zip(shown, (each for strip in drawn for each in strip.pictures), strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))), picture)


def test_a_run_shows_dense_results_where_it_has_some(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", None, data="playground", judged=False)
    for section in (dense_predictions, how_it_was_judged):
        with pytest.raises(Inapplicable):
            section(read_run(run))
    written(run / "evaluation.json", sheet(row("depth", 30.0, metric="RMSE")))
    with pytest.raises(Missing, match="no pictures of linear depth beside these results"):
        dense_predictions(read_run(run))
    save_pictures(run / "evaluation.json", {"depth": strips({"trained": [example(0)]})})
    said = dense_predictions(read_run(run))
    assert "Dark is near" in said and said.count("<img") == 3
    assert "test.content" in how_it_was_judged(read_run(run))
    assert {title for title, _, _ in FROM_RECORD} < {*ORDER}


def test_mistakes_are_met_with_what_to_do(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", None, data="playground", judged=False)
    files = {"suite.json": {"means": [], "tasks": {}}, "empty.json": sheet().to_json(), "list.json": []}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "notes.txt").write_text("{}")
    mistakes = {
        tmp_path
        / "suite.json": r"suite\.json is no sheet of results \(KeyError: 'results'\)\. Give the evaluation",
        tmp_path / "list.json": r"list\.json is no sheet of results \(TypeError",
        tmp_path / "empty.json": r"empty\.json holds no number of an encoder\. Judge one: visrep evaluate",
        tmp_path
        / "none.json": r"there is no file .*none\.json\. Give a run folder, or the file that `visrep ev",
        run
        / "evaluation.json": r"the run was not judged\. Judge it: visrep evaluate .*run --data FOLDER; or see",
        Path("timm:resnet18"): r"timm:resnet18 is no run folder and no sheet .* visrep report sheet\.json",
        tmp_path / "notes.txt": r"notes\.txt is no run folder and no sheet of results",
        tmp_path: r"no run\.json",
    }
    for asked, message in mistakes.items():
        with pytest.raises(ValueError, match=message):
            api.report(asked)
    assert not list(tmp_path.rglob("*.html"))


def test_one_page_is_of_one_thing() -> None:
    assert the_only(("a.json",)) == "a.json"
    with pytest.raises(
        ValueError, match=r"2 were given\. To compare them: visrep compare a\.json b\.json --pro"
    ):
        the_only(("a.json", "b.json"))
    with pytest.raises(ValueError, match=r"0 were given\. Name one"):
        the_only(())
