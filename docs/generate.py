"""Write docs/results.md, docs/methods/, the README's table and those of measures from records and source.

python docs/generate.py
"""

from __future__ import annotations

import json
from pathlib import Path

from visrep.analysis.measures.registry import MEASURES
from visrep.analysis.similarity.registry import SIMILARITIES
from visrep.catalogue import Entry, catalogue, load_records, records_folder
from visrep.comparison.worth import selections
from visrep.evaluation.fingerprint import hashed
from visrep.evaluation.results import variant
from visrep.evaluation.versions import outdated, version_in

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"

RESULTS_HEAD = """\
# Results

Made by `python docs/generate.py` from `records/`: do not edit. Each record holds its command, commit, seeds, hardware
and the results of every seed with confidence intervals, of every protocol. Values are percent of held-out images,
mean ± standard deviation over seeds, of the trained encoder and in brackets of the same encoder untrained.

**Verified** means three things: the loss equals the official code's on fixed inputs, forward and gradient; two ranks
on half batches equal one, and a resumed run equals an unbroken one (the test suite shows both); and on real images,
with at least three seeds, the trained encoder beats its untrained twin and raw pixels in the linear probe: the lowest
95 % confidence bound of its seeds lies above the highest value of theirs.
"""

SHOWN = {
    "linear": "linear probe",
    "knn k=20": "kNN-20",
    "attentive": "attentive probe",
    "finetune-motion": "fine-tuned",
}
"""protocols of the tables, with their headings"""

SHEETS_HEAD = """# Sheets

Made by `python docs/generate.py` from `records/sheets/`: do not edit. Numbers of `visrep evaluate`, of the last layer.
In round brackets the 95 % interval, in square ones the untrained twin, where it was judged. A row is of one grid of
patches, where there is one: numbers of different grids do not stand beside each other. A value that names a version was
made with settings of its protocol that have changed since: do not compare it with the others of its row. Below each
table stands what was fitted on and judged, the command where one was recorded, and all that the sheets warn of.
Protocols: [protocols.md](protocols.md).
"""

METHODS_HEAD = """\
# Methods

Made by `python docs/generate.py` from the method files and the records: do not edit. The pages of the families explain
targets, what stops collapse and what each is good at.

| method | family | idea | paper | status | accuracy (untrained twin) |
|---|---|---|---|---|---|
"""


def cell(values: dict | None) -> str:
    return f"{values['mean']:.1f} ± {values['sd']:.1f}" if values else ""


def claim(record: dict) -> dict:
    """The row of a record's summary on which its verification rests."""
    wanted = (record["protocol"], record["pooling"])
    return next(row for row in record["summary"] if (row["protocol"], row["pooling"]) == wanted)


def beside(row: dict) -> str:
    """The trained encoder's value, its untrained twin's in brackets."""
    untrained = f" ({row['untrained']['mean']:.1f})" if "untrained" in row else ""
    return f"{cell(row['trained'])}{untrained}"


def results() -> str:
    """docs/results.md: a table a data set, best linear probe first."""
    parts = [RESULTS_HEAD]
    records = load_records()
    for data in dict.fromkeys(record["data"] for record in records):
        here = [record for record in records if record["data"] == data]
        here.sort(key=lambda record: -claim(record)["trained"]["mean"])
        rows = [{row["protocol"]: row for row in record["summary"]} for record in here]
        shown = [protocol for protocol in SHOWN if any(protocol in row for row in rows)]
        headings = ["method", *(SHOWN[protocol] for protocol in shown), "verified", "steps", "CPU s", "seeds"]
        parts.append(f"\n## {data}\n\n{pixels(rows, shown)}\n\n")
        parts.append(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}\n")
        for record, row in zip(here, rows, strict=True):
            cells = [f"{record['method']}:{record['preset']}"]
            cells += [beside(row[protocol]) if protocol in row else "" for protocol in shown]
            cells += ["yes" if record["verified"] else "no", str(record["seeds"][0]["steps"])]
            cells += [f"{record['cpu_seconds']['mean']:.0f}", str(len(record["seeds"]))]
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\nHow each was made:\n\n")
        parts.extend(
            f"- {record['method']}: {record['machine']}, commit {record['commit']}: `{record['command']}`\n"
            for record in here
        )
    return "".join([*parts, *read_outs()])


def read_outs() -> list[str]:
    """What a linear probe does not see: runs judged by other protocols as well, a table a file."""
    parts = []
    files = sorted(records_folder().glob("read_outs_*.json"))
    for data in dict.fromkeys(file.stem.removeprefix("read_outs_").rpartition("-")[0] for file in files):
        here = [json.loads(file.read_text()) for file in files if file.stem.startswith(f"read_outs_{data}-")]
        protocols = list(dict.fromkeys(name for record in here for name in record["protocols"]))
        merged: dict[str, dict] = {}
        for row in (row for record in here for row in record["rows"]):
            merged[row["run"]] = merged.get(row["run"], {}) | row
        rows = sorted(merged.values(), key=lambda row: -row.get(protocols[0], row["linear"])["trained"])
        parts.append(
            f"\n## {data}: read with more than a linear probe of the mean\n\nOne run each, seed 0; the untrained twin "
            "in brackets.\n\n"
            f"| method | linear | {' | '.join(protocols)} |\n|{'---|' * (2 + len(protocols))}\n"
        )
        for row in rows:
            cells = [
                f"{row[name]['trained']:.1f} ({row[name]['untrained']:.1f})" if name in row else "-"
                for name in ("linear", *protocols)
            ]
            parts.append(f"| {row['method']} | {' | '.join(cells)} |\n")
        parts.append("\n")
        made = dict.fromkeys((record["machine"], row["command"]) for record in here for row in record["rows"])
        parts.extend(f"- {machine}: `{command}`\n" for machine, command in made)
    return parts


def pixels(rows: list[dict], shown: list[str]) -> str:
    """A sentence on the baseline that all rows of a table share."""
    values = []
    for protocol in shown:
        found = [row[protocol]["pixels"] for row in rows if "pixels" in row.get(protocol, {})]
        values += [f"{SHOWN[protocol]} {found[0]['mean']:.1f}"] if found else []
    return f"Raw pixels: {', '.join(values)}."


def summary() -> str:
    """The short table of the README: the linear probe of every record, a column a data set, best first.

    Of data sets on which some method was verified: trials of one seed are in docs/results.md.
    """
    records = [record for record in load_records() if record["protocol"] == "linear"]
    proving = {record["data"] for record in records if record["verified"]}
    records = [record for record in records if record["data"] in proving]
    records.sort(key=lambda record: -claim(record)["trained"]["mean"])
    sets = sorted({record["data"] for record in records})
    rows: dict[str, dict[str, dict]] = {}
    for record in records:
        rows.setdefault(record["method"], {})[record["data"]] = claim(record)
    parts = [f"| method | {' | '.join(sets)} |\n|{'---|' * (1 + len(sets))}\n"]
    for method, row in rows.items():
        parts.append(
            f"| {method} | {' | '.join(beside(row[data]) if data in row else '' for data in sets)} |\n"
        )
    baseline = [
        f"{next(row[data] for row in rows.values() if data in row)['pixels']['mean']:.1f}" for data in sets
    ]
    parts.append(f"| raw pixels | {' | '.join(baseline)} |\n")
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
    protocol = SHOWN.get(record["protocol"], record["protocol"])
    return f"{record['data']} {beside(claim(record))}, {protocol}"


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
        parts.extend(f"- learns: {proof(record)}, percent\n" for record in entry.records)
    return between(text, "methods", "".join(parts))


def measures() -> str:
    """The label-free measures: variant, which end is better, what they compare."""
    parts = ["| measure | variant | better | what it can and cannot compare |\n|---|---|---|---|\n"]
    parts.extend(
        f"| `{m.name}`: {m.title} | {m.variant} | {m.better or '-'} | {m.compares} |\n" for m in MEASURES
    )
    return "".join(parts)


def worth() -> str:
    """How well each label-free measure ordered our own runs."""
    file = records_folder() / "label_free.json"
    if not file.exists():
        return "Not measured yet.\n"
    record = json.loads(file.read_text())
    groups = record["groups"]
    parts = [
        f"Spearman's correlation with the linear probe (95 % interval over methods drawn anew), Kendall's in brackets, "
        f"of {len(record['runs'])} runs on {record['images']} of their training images, LiDAR and alignment on "
        f"{record['views']} views of {record['view_images']}. Positive: the better end of the measure (where it has "
        "none: the higher value) goes with the better probe.\n\n",
        f"| measure | {' | '.join(group['name'] for group in groups)} |\n|{'---|' * (1 + len(groups))}\n",
    ]
    for m in MEASURES:
        rows = [group["correlations"].get(m.key) for group in groups]
        cells = [
            f"{row['spearman']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}) [{row['kendall']:+.2f}], n = {row['n']}"
            if row
            else "-"
            for row in rows
        ]
        if any(rows):
            parts.append(f"| {m.title} | {' | '.join(cells)} |\n")
    return "".join(parts)


def choices() -> str:
    """What choosing among settings and checkpoints by each label-free measure was worth."""
    records = selections()
    if not records:
        return "Not measured yet.\n"
    kinds = [(record, kind) for record in records for kind in ("settings", "checkpoints")]
    heads = [f"{record['method']}, {len(record['settings'])} settings" for record in records]
    titles = [title for head in heads for title in (head, "its checkpoints")]
    parts = [f"| measure | {' | '.join(titles)} |\n|{'---|' * (1 + len(titles))}\n"]
    for m in MEASURES:
        rows = [record["agreement"][kind].get(m.key) for record, kind in kinds]
        if any(rows):
            cells = [f"{row['spearman']:+.2f}, {row['behind']:.1f} behind" if row else "-" for row in rows]
            parts.append(f"| {m.title} | {' | '.join(cells)} |\n")
    parts.append(
        "\nThe probe, by setting, and after each two epochs:\n\n| method | setting | linear |\n|---|---|---|\n"
    )
    for record in records:
        for one in record["settings"]:
            steps = ", ".join(f"{kept['linear']:.1f}" for kept in one["checkpoints"])
            parts.append(
                f"| {record['method']} | {one['setting']} | {one['end']['linear']:.1f} ({steps}) |\n"
            )
    parts.extend(f"\n`{record['command']}` ({record['machine']})\n" for record in records)
    return "".join(parts)


def diagnostics_page(text: str) -> str:
    """docs/diagnostics.md with its tables made anew."""
    for name, made in (("measures", measures()), ("worth", worth()), ("choices", choices())):
        text = between(text, name, made)
    return text


def sheets() -> str:
    """docs/sheets.md: what `visrep evaluate --protocols all` found, a table a data set, a column an encoder."""
    parts = [SHEETS_HEAD]
    files = sorted((records_folder() / "sheets").glob("*.json"))
    for data in dict.fromkeys(file.stem.partition("-")[2] for file in files):
        here = {
            file.stem.partition("-")[0]: json.loads(file.read_text())
            for file in files
            if file.stem.partition("-")[2] == data
        }
        parts.append(
            f"\n## {data}\n\n| protocol | metric | {' | '.join(here)} |\n|{'---|' * (2 + len(here))}\n"
        )
        found = {name: sheet_rows(sheet) for name, sheet in here.items()}
        for key in dict.fromkeys(key for rows in found.values() for key in rows):
            cells = [found[name].get(key, "") for name in here]
            parts.append(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |\n")
        parts.append("\n")
        parts.extend(f"- {name}: {sheet['split']}; {how_made(sheet)}\n" for name, sheet in here.items())
        parts.append("\nWarnings:\n\n")
        parts.extend(
            f"- {'all' if len(names) == len(here) else ', '.join(names)}: {said}\n"
            for said, names in warnings_of(here).items()
        )
    return "".join(parts)


def how_made(sheet: dict) -> str:
    """What is known of it: the commands, or that there are none, and which baselines are missing."""
    judged = {result["encoder"] for result in sheet["results"]}
    baselines = {"untrained": "the untrained twin", "pixels": "raw pixels"}
    missing = [what for who, what in baselines.items() if who not in judged]
    said = [f"without {' and '.join(missing)}"] if missing else []
    recorded: set[str] = set()
    for one in sheet.get("made", ()):
        machine, recorded = one["machine"], recorded | {*one["protocols"]}
        command = f"`{one['command']}`" if one["command"] else f"from Python, {one['encoder']}"
        seconds = ", ".join(f"{name} {spent:.0f}" for name, spent in one["seconds"].items())
        where = f"{machine['device']}, {machine['cores']} cores, {machine['arch']}, torch {machine['torch']}"
        said.append(f"{command} ({where}; seconds: {seconds})")
    if unknown := {result["protocol"] for result in sheet["results"]} - recorded:
        which = f"{', '.join(sorted(unknown))}: " if recorded else ""
        said.append(f"{which}made before commands were recorded")
    if not all(hashed(sheet["fingerprint"][side]) for side in ("train", "test")):
        said.append("made before images were hashed")
    return "; ".join(said)


def warnings_of(sheets: dict[str, dict]) -> dict[str, list[str]]:
    """Each warning once, with the sheets that have it; those that it is about, in brackets at its end, once too."""
    found: dict[str, list[str]] = {}
    for name, sheet in sheets.items():
        for warning in sheet["warnings"]:
            said, bracket, who = warning.removesuffix(")").rpartition(" (")
            if bracket and {*who.split(", ")} <= {"trained", "untrained", "pixels"}:
                warning = f"{said} ({', '.join(dict.fromkeys(who.split(', ')))})"
            if name not in found.setdefault(warning, []):
                found[warning].append(name)
    return found


def sheet_rows(sheet: dict) -> dict[tuple[str, str], str]:
    """By protocol with variant and grid, and metric: the encoder with its interval, the untrained twin in brackets."""
    last = max((result["layer"] for result in sheet["results"]), default=0)
    rows: dict[tuple[str, str], str] = {}
    twins = {
        variant_of(result): result["value"] for result in sheet["results"] if result["encoder"] == "untrained"
    }
    for result in sheet["results"]:
        key = variant_of(result)
        if result["encoder"] != "trained" or result["layer"] != last or key in rows:
            continue
        twin = f" [{twins[key]:.1f}]" if key in twins else ""
        old = f" version {version_in(result)}" if outdated(result) else ""
        rows[key] = f"{result['value']:.1f} ({result['ci_low']:.1f} to {result['ci_high']:.1f}){twin}{old}"
    return rows


def variant_of(result: dict) -> tuple[str, str]:
    """Protocol, with what its rows differ in, and metric."""
    found = variant(result["settings"])
    name = f"{result['protocol']} {found[0]}={found[1]}" if found else result["protocol"]
    grid = result["settings"].get("grid")
    return f"{name}, {grid} patches" if grid else name, result["metric"]


def study(name: str) -> str:
    """A study of continuing from weights: before and after, mean and deviation over seeds."""
    file = records_folder() / f"continued_{name}.json"
    if not file.exists():
        return "Not measured yet.\n"
    record = json.loads(file.read_text())
    parts = [
        f"{record['method']}, {record['epochs']:g} epochs, batch {record['batch']}, {record['machine']}; before and "
        f"after on the same held-out images at the same size.\n\n",
        "| start | px | recipe | guard | linear before | after | kNN-20 before | after | the guard | CPU s | seeds |\n",
        f"|{'---|' * 11}\n",
    ]
    for row in record["rows"]:
        before, after = row["before"][str(row["size"])], row["after"]
        spoke = sum(bool(run["said"]) for run in row["runs"])
        verb = "warned" if row["guard"] == "warn" else "acted"
        said = (
            "-"
            if row["guard"] == "off"
            else f"{verb} in {spoke} of {len(row['runs'])}"
            if spoke
            else "silent"
        )
        seconds = sum(run["cpu_seconds"] for run in row["runs"]) / len(row["runs"])
        parts.append(
            f"| {row['start']} | {row['size']} | {row['recipe']} | {row['guard']} "
            f"| {before['linear']['value']:.1f} | {cell(after['linear'])} "
            f"| {before['knn']['value']:.1f} | {cell(after['knn'])} | {said} | {seconds:.0f} "
            f"| {len(row['runs'])} |\n"
        )
    parts.append("\nMade by\n\n```\n")
    parts.extend(f"{command}\n" for command in dict.fromkeys(row["command"] for row in record["rows"]))
    return "".join([*parts, "```\n"])


def encoders() -> str:
    """Records of encoders that one method trained alike, the preset's own among them, best linear probe first."""
    files = sorted((records_folder() / "encoders").glob("*.json"))
    others = [json.loads(file.read_text()) for file in files]
    if not others:
        return "Not measured yet.\n"
    trained = {(record["method"], record["preset"], record["data"]) for record in others}
    own = [
        record for record in load_records() if (record["method"], record["preset"], record["data"]) in trained
    ]
    parts = [
        "| encoder | method | data | kNN-20 | linear | CPU s | seeds |\n|---|---|---|---|---|---|---|\n",
    ]
    for record in sorted([*own, *others], key=lambda record: -claim(record)["trained"]["mean"]):
        near = next((row for row in record["summary"] if row["protocol"] == "knn k=20"), None)
        parts.append(
            f"| {record.get('encoder') or 'the preset, a ViT'} | {record['method']}:{record['preset']} "
            f"| {record['data']} | {beside(near) if near else ''} | {beside(claim(record))} "
            f"| {record['cpu_seconds']['mean']:.0f} | {len(record['seeds'])} |\n"
        )
    return "".join(parts)


def curves() -> str:
    """Coding rate and sparsity, first layer to last, of every run that was measured, beside the same untrained."""
    found = json.loads((DOCS / "whitebox_curves.json").read_text())
    parts = ["| run | what | trained | untrained |\n|---|---|---|---|\n"]
    for run in found["runs"]:
        shown = (
            ("rate", "coding rate, nats", 1),
            ("nonzero", "share not zero", 2),
            ("bound", "bound on it, nats", 1),
        )
        for key, title, digits in shown:
            if run["trained"][key]:
                cells = [
                    ", ".join(f"{value:.{digits}f}" for value in run[who][key])
                    for who in ("trained", "untrained")
                ]
                parts.append(f"| `{run['run']}` | {title} | {cells[0]} | {cells[1]} |\n")
    return "".join([*parts, f"\n`{found['command']}`\n"])


def similarity_page(text: str) -> str:
    """docs/similarity.md with its table made anew."""
    parts = ["| measure | variant | what it is blind to, and what it can say |\n|---|---|---|\n"]
    parts.extend(f"| `{s.name}`: {s.title} | {s.variant} | {s.compares} |\n" for s in SIMILARITIES)
    return between(text, "similarities", "".join(parts))


REMADE = {
    "diagnostics.md": diagnostics_page,
    "similarity.md": similarity_page,
    "continue.md": lambda text: between(text, "study", study("flowers")),
    "whitebox.md": lambda text: between(between(text, "encoders", encoders()), "curves", curves()),
}
"""pages that are written by hand but for their tables"""


if __name__ == "__main__":
    (DOCS / "results.md").write_text(results())
    (DOCS / "methods/README.md").write_text(methods())
    for family in {entry.family for entry in catalogue()}:
        page = DOCS / f"methods/{family}.md"
        page.write_text(family_page(page.read_text() if page.exists() else f"# {family}\n\n", family))
    (DOCS / "sheets.md").write_text(sheets())
    for page, remade in REMADE.items():
        (DOCS / page).write_text(remade((DOCS / page).read_text()))
    README.write_text(readme(README.read_text()))
