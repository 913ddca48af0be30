"""Bars of long work: one display for work within work, nothing where nobody looks."""

import io

import pytest

from visrep import progress
from visrep.progress import TrainingProgress, counted, tracked, within


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: stderr is captured anew when a test begins."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_work_within_work_shares_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    seen = []
    for outer in tracked(range(2), "images", shown=True):
        display = progress.BARS.display
        assert display is not None
        for inner in within(iter("ab"), "passes", total=2):
            assert progress.BARS.display is display
            assert [task.description for task in display.tasks] == ["images", "passes"]
            assert [task.total for task in display.tasks] == [2, 2]
            seen.append((outer, inner))
        assert [task.description for task in display.tasks] == ["images"]
    assert seen == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert progress.BARS.display is None
    assert "images" in screen.getvalue()


def test_a_bar_ends_with_the_error_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    with pytest.raises(OSError), counted("decoding", 3, shown=True) as advance:
        advance(1, "9 images/s")
        raise OSError("disk full")
    assert progress.BARS.display is None


@pytest.mark.parametrize("shown", [True, False])
def test_a_file_gets_no_bar(monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    assert list(tracked(range(3), "images", shown=shown)) == [0, 1, 2]
    assert not written.getvalue()


def test_work_that_is_part_of_nothing_shown_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    assert list(within(range(3), "passes")) == [0, 1, 2]
    assert not screen.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_what_a_training_says_reaches_a_file_in_whole_lines(
    monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    sentence = "Only 4 steps: [hardly] anything can be learned. " * 4
    with TrainingProgress(2, 0, shown=shown) as progress:
        for line in ("", sentence.strip()):
            progress.say(line)
        progress.advance(0.5, 16)
    assert written.getvalue() == (sentence.strip() + "\n" if shown else "")


def test_what_a_training_says_stands_above_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with TrainingProgress(2, 0, shown=True) as progress:
        progress.say("healthy")
    assert "healthy" in screen.getvalue() and "training" in screen.getvalue()
