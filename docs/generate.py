"""Write docs/results.md, docs/methods.md and the README's table from the records and the method files.

python docs/generate.py
"""

from __future__ import annotations

from pathlib import Path

from visrep.catalogue import catalogue, load_records

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"

RESULTS_HEAD = """\
# Results

Made by `python docs/generate.py` from `records/`: do not edit. Each record holds its command, commit, seeds, hardware
and the results of every seed with confidence intervals. Values are percent, mean ± standard deviation over seeds.

**Verified** means three things: the loss equals the official code's on fixed inputs, forward and gradient; two ranks
on half batches equal one, and a resumed run equals an unbroken one (the test suite shows both); and on real images,
with at least three seeds, the trained encoder beats its untrained twin and raw pixels in the protocol in bold: the
lowest 95 % confidence bound of its seeds lies above the highest value of theirs.
"""

METHODS_HEAD = """\
# Methods

Made by `python docs/generate.py` from the method files: do not edit.
"""


def cell(values: dict | None) -> str:
    return f"{values['mean']:.1f} ± {values['sd']:.1f}" if values else ""


def results() -> str:
    """docs/results.md."""
    parts = [RESULTS_HEAD]
    records = load_records()
    for data in dict.fromkeys(record["data"] for record in records):
        parts.append(f"\n## {data}\n\n")
        parts.append(
            "| method | protocol | layer, pooling | trained | untrained | pixels | beats both | CPU s | seeds |\n"
        )
        parts.append("|---|---|---|---|---|---|---|---|---|\n")
        for record in (r for r in records if r["data"] == data):
            for row in record["summary"]:
                claim = row["protocol"] == record["protocol"] and row["pooling"] == record["pooling"]
                protocol = f"{row['protocol']} {row['metric']}"
                seconds = f"{record['cpu_seconds']['mean']:.0f}"
                both = "yes" if row["beats_untrained"] and row["beats_pixels"] else "no"
                parts.append(
                    f"| {record['method']}:{record['preset']} | {f'**{protocol}**' if claim else protocol} "
                    f"| {row['layer']}, {row['pooling']} | {cell(row['trained'])} | {cell(row.get('untrained'))} "
                    f"| {cell(row.get('pixels'))} | {both} | {seconds} | {len(record['seeds'])} |\n"
                )
        parts.append("\n")
        for record in (r for r in records if r["data"] == data):
            parts.append(
                f"- {record['method']}: {record['machine']}, commit {record['commit']}: `{record['command']}`\n"
            )
    return "".join(parts)


def summary() -> str:
    """The short table of the README: the claim of every record."""
    parts = ["| method | data | linear probe | untrained twin | raw pixels |\n|---|---|---|---|---|\n"]
    for record in load_records():
        row = next(
            row
            for row in record["summary"]
            if (row["protocol"], row["pooling"]) == (record["protocol"], record["pooling"])
        )
        cells = (cell(row.get(encoder)) for encoder in ("trained", "untrained", "pixels"))
        parts.append(f"| {record['method']} | {record['data']} | {' | '.join(cells)} |\n")
    return "".join(parts)


def readme(text: str) -> str:
    """The README with its table made anew."""
    before, _, rest = text.partition("<!-- results -->\n")
    _, _, after = rest.partition("<!-- end of results -->")
    return f"{before}<!-- results -->\n{summary()}<!-- end of results -->{after}"


def methods() -> str:
    """docs/methods.md."""
    parts = [METHODS_HEAD]
    entries = catalogue()
    for family in dict.fromkeys(entry.family for entry in entries):
        parts.append(f"\n## {family}\n")
        for entry in (e for e in entries if e.family == family):
            paper = f" [arXiv:{entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else ""
            parts.append(
                f"\n### {entry.name}\n\n{entry.idea}{paper}\n\n"
                f"- status: {entry.status}\n- verified against: {entry.verified_against}\n"
                f"- deviations: {entry.deviations or 'none'}\n- presets: {', '.join(entry.presets)}\n"
            )
    return "".join(parts)


if __name__ == "__main__":
    (DOCS / "results.md").write_text(results())
    (DOCS / "methods.md").write_text(methods())
    README.write_text(readme(README.read_text()))
