"""Write docs/results.md, docs/methods/ and the README's table from the records and the method files.

python docs/generate.py
"""

from __future__ import annotations

from pathlib import Path

from visrep.catalogue import Entry, catalogue, load_records

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

Made by `python docs/generate.py` from the method files and the records: do not edit. The pages of the families explain
targets, what stops collapse and what each is good at.

| method | family | idea | paper | status | linear probe (untrained twin) |
|---|---|---|---|---|---|
"""


def cell(values: dict | None) -> str:
    return f"{values['mean']:.1f} ± {values['sd']:.1f}" if values else ""


def claim(record: dict) -> dict:
    """The row of a record's summary on which its verification rests."""
    wanted = (record["protocol"], record["pooling"])
    return next(row for row in record["summary"] if (row["protocol"], row["pooling"]) == wanted)


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
                protocol = f"{row['protocol']} {row['metric']}"
                protocol = f"**{protocol}**" if row is claim(record) else protocol
                seconds = f"{record['cpu_seconds']['mean']:.0f}"
                both = "yes" if row["beats_untrained"] and row["beats_pixels"] else "no"
                parts.append(
                    f"| {record['method']}:{record['preset']} | {protocol} "
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
        row = claim(record)
        cells = (cell(row.get(encoder)) for encoder in ("trained", "untrained", "pixels"))
        parts.append(f"| {record['method']} | {record['data']} | {' | '.join(cells)} |\n")
    return "".join(parts)


def between(text: str, marker: str, made: str) -> str:
    """The text with what stands between ``<!-- marker -->`` and ``<!-- end of marker -->`` made anew."""
    before, _, rest = text.partition(f"<!-- {marker} -->\n")
    _, _, after = rest.partition(f"<!-- end of {marker} -->")
    return f"{before}<!-- {marker} -->\n{made}<!-- end of {marker} -->{after}"


def readme(text: str) -> str:
    """The README with its table made anew."""
    return between(text, "results", summary())


def paper(entry: Entry) -> str:
    return f"[{entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else ""


def proof(record: dict) -> str:
    """The claim of a record in a few words."""
    row = claim(record)
    untrained = f" ({row['untrained']['mean']:.1f})" if "untrained" in row else ""
    return f"{record['data']} {row['trained']['mean']:.1f} ± {row['trained']['sd']:.1f}{untrained}"


def methods() -> str:
    """docs/methods/README.md: one line a method."""
    parts = [METHODS_HEAD]
    for entry in catalogue():
        idea = entry.idea.partition(": ")[2] or entry.idea
        status = "verified" if entry.status == "verified" else "unverified"
        parts.append(
            f"| {entry.name} | [{entry.family}]({entry.family}.md) | {idea} | {paper(entry)} | {status} "
            f"| {'; '.join(map(proof, entry.records))} |\n"
        )
    return "".join(parts)


def family_page(text: str, family: str) -> str:
    """A page of docs/methods/ with its facts about each method made anew."""
    parts = []
    for entry in (entry for entry in catalogue() if entry.family == family):
        parts.append(
            f"\n### {entry.name}\n\n{entry.idea} {paper(entry)}\n\n```\n{entry.equation}\n```\n\n"
            f"- status: {entry.status}\n- verified against: {entry.verified_against}\n"
            f"- deviations: {entry.deviations or 'none'}\n- presets: {', '.join(entry.presets)}\n"
        )
        parts.extend(f"- learns: {proof(record)}, linear probe, percent\n" for record in entry.records)
    return between(text, "methods", "".join(parts))


if __name__ == "__main__":
    (DOCS / "results.md").write_text(results())
    (DOCS / "methods/README.md").write_text(methods())
    for family in {entry.family for entry in catalogue()}:
        page = DOCS / f"methods/{family}.md"
        page.write_text(family_page(page.read_text() if page.exists() else f"# {family}\n\n", family))
    README.write_text(readme(README.read_text()))
