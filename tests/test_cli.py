"""The command line as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visrep import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["visrep", *arguments])
    cli.main()


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    assert stop.value.code != 0
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes that differ in colour and texture."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("warm", "cold")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(24):
            image = rng.integers(0, 120, (40, 48, 3), np.uint8)
            image[..., 2 * label] += 120
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{i}.jpg")
    return tmp_path / "photos"


def test_from_a_folder_to_a_judged_encoder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "a")
    run(
        monkeypatch,
        "pretrain",
        "simclr:tiny",
        "--data",
        str(photos),
        "--out",
        out,
        "--batch",
        "12",
        "--seed",
        "3",
    )
    about = json.loads((tmp_path / "a" / "run.json").read_text())
    assert about["overrides"] == ["--data", str(photos), "--out", out, "--batch", "12", "--seed", "3"]
    assert about["run"]["batch"] == 12
    assert about["run"]["seed"] == 3
    run(monkeypatch, "evaluate", out, "--data", str(photos), "--protocols", "knn", "linear")
    results = json.loads((tmp_path / "a" / "evaluation.json").read_text())["results"]
    assert {r["encoder"] for r in results} == {"trained", "untrained", "pixels"}
    assert {r["protocol"] for r in results} == {"knn", "linear"}
    assert all(0 <= r["ci_low"] <= r["value"] <= r["ci_high"] <= 100 for r in results)
    vectors = tmp_path / "vectors.npz"
    run(monkeypatch, "embed", out, "--data", str(photos), "--out", str(vectors))
    assert vectors.exists()
    run(monkeypatch, "report", out)
    assert "<html" in (tmp_path / "a" / "report.html").read_text()
    capsys.readouterr()


def test_encoder_by_name_and_leaf_flags(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flags = ("--encoder", "resnet_narrow", "--epochs", "0.5", "--batch", "12", "--method.tau", "0.3")
    run(monkeypatch, "pretrain", "simclr:tiny", "--data", str(photos), "--out", str(tmp_path / "b"), *flags)
    saved = json.loads((tmp_path / "b" / "run.json").read_text())["run"]
    assert saved["method"]["encoder"]["width"] == 16
    assert saved["method"]["tau"] == 0.3


def test_list_names_every_method_with_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(monkeypatch, "list", "--json")
    entries = json.loads(capsys.readouterr().out)
    assert {"simclr", "dino", "mae", "supervised"} <= {entry["name"] for entry in entries}
    for entry in entries:
        assert entry["status"].startswith(("verified", "unverified: "))
        assert {"tiny", "small32"} <= set(entry["presets"])
    run(monkeypatch, "list")
    assert "simclr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrian",), "no command 'pretrian'"),
        (("pretrain",), "Which method"),
        (("pretrain", "simlcr"), "Perhaps you meant simclr"),
        (("pretrain", "simclr:huge"), "no preset 'huge'"),
        (("pretrain", "simclr:tiny", "--encoder", "vit_huge"), "no encoder 'vit_huge'"),
        (("pretrain", "simclr:tiny", "--method.encoder", "vit_vast"), "no encoder 'vit_vast'"),
        (
            ("pretrain", "simclr:tiny", "--encoder", "vit_tiny", "--init", "runs/a"),
            "Give init alone to continue",
        ),
        (("pretrain", "distill:tiny", "--teacher"), "--teacher needs a name"),
        (("pretrain", "simclr:tiny", "--data", "/no/such/folder"), "/no/such/folder"),
        (("pretrain", "--resume", "/no/such/run"), "not a run folder"),
        (("evaluate", "/no/such/run", "--data", "playground:n=40,size=32"), "/no/such/run"),
        (("pretrain", "missing_method.py"), "no file missing_method.py"),
    ],
)
def test_mistakes_get_one_clear_message(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    text = fails(monkeypatch, capsys, *arguments)
    assert message in text
    assert "Traceback" not in text


def test_brackets_of_a_message_reach_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The name of an extra, which a terminal library would take for a colour."""
    monkeypatch.setitem(sys.modules, "timm", None)
    data = ("--data", "playground:n=4,size=32")
    text = fails(monkeypatch, capsys, "embed", "timm:resnet18", *data, "--out", str(tmp_path / "a.npz"))
    assert 'visrep embed: this needs timm: pip install "visrep[timm]"' in text
    assert "[/no]" in fails(monkeypatch, capsys, "embed", "runs/[/no]", *data, "--out", "a.npz")


def test_an_unknown_flag_is_met_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = fails(monkeypatch, capsys, "pretrain", "simclr:tiny", "--method.tua", "0.3")
    assert "--method.tau" in text


def test_importing_visrep_does_not_import_the_heavy_parts():
    heavy = ("sklearn", "matplotlib", "lightning_fabric", "PIL")
    code = f"import sys, visrep; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
