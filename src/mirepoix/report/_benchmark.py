"""The page of a benchmark: what to be careful about, the tables, and the figures that say why.

The head of the page with its style and its macros is that of the report of a job (``template.html``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mirepoix.report._figures import Plot
from mirepoix.report._html import page_template
from mirepoix.report._markdown import _code, _items, _plain, _table, _terms
from mirepoix.report._numbers import amount, cleaned, finite, setting
from mirepoix.report._result import as_list, as_map
from mirepoix.report._strategy_figures import (
    draw_accuracy_against_members,
    draw_accuracy_against_share,
    draw_accuracy_against_tasks,
    draw_gain_against_diversity,
    draw_interpolation_curve,
    draw_slope_against_members,
)
from mirepoix.report._tables import Cell, Table, table_of
from mirepoix.types import InputError

__all__ = ["write_benchmark_report"]

_TITLES = {
    "diversity": "fine-tuning",
    "diversity_inter_training": "inter-training",
    "hypothesis_1": "hypothesis 1: before training on the target",
    "hypothesis_2": "hypothesis 2: after training on the target",
    "three": "hypothesis 2, three members",
}
"""What tells figures of one kind apart, above the drawing."""

_WHAT = {
    "members": "accuracy against the number of members",
    "diversity": "gain against diversity, fine-tuning",
    "diversity_inter_training": "gain against diversity, inter-training",
    "share": "accuracy against the share of inter-trained members",
    "tasks": "accuracy against the number of initialisations",
    "hypothesis_1": "the way between two initialisations before training on the target task",
    "hypothesis_2": "the way between two members of different initialisations",
    "three": "the way among three members",
}
"""Names of figures that could not be made."""

_COUNTS = {
    "splits": "targets times data seeds",
    "trainings": "distinct trainings",
    "asked_by_rows": "members asked for by the rows, each on its own",
    "stored": "stored before",
    "diverged": "diverged before",
    "to_train": "to train",
}
"""Counts of a plan, in words."""

_HOW = {
    "training-domain": "Training-domain validation chooses on held-out images of the source domains.",
    "leave-one-out": "Leave-one-out validation chooses on source domains that were left out in their turn.",
}


@dataclass(frozen=True, slots=True)
class _Split:
    """The figures of one split."""

    title: str
    plots: tuple[Plot, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Result:
    """One table with what stands around it."""

    title: str
    caption: str
    table: Table
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Page:
    """All that the page says."""

    title: str
    name: str
    version: str
    facts: tuple[tuple[str, str], ...]
    trust: tuple[tuple[str, str], ...]
    results: tuple[_Result, ...]
    splits: tuple[_Split, ...]
    rows: Table
    protocol: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    diverged: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    command: str


def write_benchmark_report(content: Mapping[str, Any], out: Path) -> None:
    """Write ``report.md``, ``figures/*.svg`` and, last, ``report.html`` into a folder.

    Everything is rendered before anything is written, and each file replaces its predecessor in one step. Equal
    contents give equal bytes. The page loads nothing from elsewhere.

    Args:
        content: Plain values; what is not there is not printed, but for the tables, of which one is needed:

            - ``title``, ``name`` and ``source`` of the recipe; ``mirepoix``, the version;
            - ``protocol``: its name, or a mapping from names to values;
            - ``selection``: the methods that chose, of ``training-domain``, ``leave-one-out`` and ``oracle``;
            - ``datasets``: for each ``name``, ``targets``, ``data_seeds``, and ``images`` of the smallest target;
            - ``auxiliaries``: names of auxiliary tasks;
            - ``tables``: for each ``title``, ``caption``, ``columns``, ``lines`` (texts; the first is the name of the
              row, a number is ``71.2`` or ``71.2 ± 0.3``), and ``missing``, sentences;
            - ``evidence``: for each split what `mirepoix.domainbed.look_into_split` returned;
            - ``rows``: for each ``key``, ``label`` and ``equation``;
            - ``plan``: counts ``splits``, ``trainings``, ``asked_by_rows``, ``stored``, ``diverged``, ``to_train``;
            - ``seconds``: how long it took; ``diverged``, labels of trainings; ``failed``, from labels to reasons;
            - ``cautions``: further ones, of ``level`` (``warning`` or ``note``) and ``text``; ``notes``, sentences;
            - ``command``, and ``environment``, a mapping from names to values.
        out: Made if it does not exist.

    Raises:
        InputError: Without tables, for a line that has not one text per column, or a figure of an unknown kind.
    """
    from mirepoix.checkpoints import write_atomically

    page = _page(cleaned(dict(content)))
    out = Path(out)
    texts = {out / "report.md": _markdown(page)}
    for split in page.splits:
        for plot in split.plots:
            texts[out / "figures" / f"{plot.name}.svg"] = plot.svg(inline=False)
    texts[out / "report.html"] = _html(page)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_atomically(path, text)


def _page(content: Mapping[str, Any]) -> _Page:
    protocol = content.get("protocol") or {}
    terms = protocol if isinstance(protocol, Mapping) else {"protocol": protocol}
    failed = tuple((str(label), str(why)) for label, why in as_map(content.get("failed")).items())
    return _Page(
        title=str(content.get("title") or content.get("name") or "benchmark"),
        name=str(content.get("name") or ""),
        version=str(content.get("mirepoix") or ""),
        facts=_facts(content),
        trust=_trust(content),
        results=_results(content),
        splits=tuple(_split(number, look) for number, look in enumerate(as_list(content.get("evidence")))),
        rows=table_of(
            ["Row", "Equation", "Key"],
            [
                [row["label"], row.get("equation") or "", row.get("key") or ""]
                for row in as_list(content.get("rows"))
            ],
        ),
        protocol=_named(terms),
        environment=_named(as_map(content.get("environment"))),
        notes=_texts(content, "notes"),
        diverged=_texts(content, "diverged"),
        failed=failed,
        command=str(content.get("command") or ""),
    )


def _facts(content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    facts = []
    for each in as_list(content.get("datasets")):
        targets, seeds = as_list(each.get("targets")), as_list(each.get("data_seeds"))
        text = f"{amount(len(targets), 'target')} ({', '.join(map(str, targets))}), each left out of training in turn"
        facts.append((str(each["name"]), f"{text}; {amount(len(seeds), 'data seed')}."))
    if auxiliaries := as_list(content.get("auxiliaries")):
        facts.append(("Auxiliary tasks", f"{', '.join(map(str, auxiliaries))}."))
    if content.get("source"):
        facts.append(("Source", str(content["source"])))
    plan = as_map(content.get("plan"))
    if counts := [f"{plan[key]:,} {words}" for key, words in _COUNTS.items() if key in plan]:
        facts.append(("Trainings", f"{'; '.join(counts)}."))
    seconds = finite(content.get("seconds"))
    if seconds is not None:
        facts.append(("Time", _duration(seconds)))
    return tuple(facts)


def _trust(content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What to be careful about, warnings first."""
    found = [
        (str(each.get("level") or "note"), str(each["text"])) for each in as_list(content.get("cautions"))
    ]
    for each in as_list(content.get("datasets")):
        found.append(_seeds(str(each["name"]), len(as_list(each.get("data_seeds")))))
        images = each.get("images")
        if images:
            text = f"{each['name']}: the smallest target has {amount(images, 'image')}, so one image is "
            found.append(("note", f"{text}{100 / images:.2g} points there."))
    selection = as_list(content.get("selection"))
    if "oracle" in selection:
        found.append(
            (
                "warning",
                "The oracle tables choose by labels of the target, which nobody has for a domain that was never seen: "
                "read them as an upper reference. No other table chose by them.",
            )
        )
    elif selection:
        found.append(("note", "Labels of the target are in no choice: each number was measured after it."))
    found += [("note", text) for method, text in _HOW.items() if method in selection]
    missing = sum(len(as_list(table.get("missing"))) for table in as_list(content.get("tables")))
    if missing:
        text = f"{amount(missing, 'number')} behind the tables {'is' if missing == 1 else 'are'} missing: a dash, with "
        found.append(
            ("warning", f"{text}the reason below the table. The means that need them have none either.")
        )
    diverged = len(as_list(content.get("diverged")))
    if diverged:
        text = f"{amount(diverged, 'training')} diverged. Rows are made of the members that are left, so a row may "
        found.append(("warning", f"{text}have fewer members than another one; the details name them."))
    failed = len(as_map(content.get("failed")))
    if failed:
        what = amount(failed, "training or measurement", "trainings or measurements")
        text = f"{what} could not be carried out; the details say why. The same command tries again."
        found.append(("warning", text))
    if any(
        "numbers" in f for e in as_list(content.get("evidence")) for f in as_map(e.get("figures")).values()
    ):
        text = "The figures read labels of the target, after the tables, and nothing was chosen by them. Their bars "
        found.append(
            ("note", f"{text}speak of the choice of subsets, which share members, and not of new trainings.")
        )
    unique = list(dict.fromkeys(found))
    return tuple(sorted(unique, key=lambda item: item[0] != "warning"))


def _seeds(dataset: str, count: int) -> tuple[str, str]:
    if count < 2:
        text = "one data seed, so no number has an error, and a small difference between rows may be chance."
        return "warning", f"{dataset}: {text}"
    what = (
        f"{dataset}: ± is one standard error over {count} data seeds, the deviation of the population over their "
        "square root. It covers new divisions of the images and new runs, not new targets."
    )
    if count < 3:
        return "warning", f"{what} Of two data seeds it is itself uncertain, and too small on average."
    return "note", what


def _results(content: Mapping[str, Any]) -> tuple[_Result, ...]:
    tables = as_list(content.get("tables"))
    if not tables:
        raise InputError("tables: expected at least one table, got none. Measure the cells first.")
    return tuple(
        _Result(str(each["title"]), str(each.get("caption") or ""), _marked(each), _texts(each, "missing"))
        for each in tables
    )


def _marked(table: Mapping[str, Any]) -> Table:
    """A table of texts with the best of each column marked; two numbers that print alike are both the best."""
    columns, lines = as_list(table["columns"]), [as_list(line) for line in as_list(table["lines"])]
    for line in lines:
        if len(line) != len(columns):
            raise InputError(
                f"table {table['title']!r}: expected lines of {len(columns)} texts, one per column, got {len(line)}: "
                f"{line}."
            )
    best: list[float | None] = [None]
    for c in range(1, len(columns)):
        known = [value for line in lines if (value := _value(line[c])) is not None]
        best.append(max(known) if len(known) > 1 else None)
    return Table(
        tuple(map(str, columns)),
        tuple(
            tuple(
                Cell(str(text), c > 0 and best[c] is not None and _value(text) == best[c])
                for c, text in enumerate(line)
            )
            for line in lines
        ),
    )


def _value(text: Any) -> float | None:
    """The number that a cell begins with."""
    found = re.match(r"\d+(\.\d+)?(?= |$)", str(text))
    return None if found is None else float(found[0])


# Figures.


def _split(number: int, look: Mapping[str, Any]) -> _Split:
    """The figures of one split; their names differ from those of any other."""
    title = f"{look['dataset']} without {look['target']}, data seed {look['data_seed']}"
    prefix = (
        f"{number}_" + re.sub(r"[^A-Za-z0-9]+", "_", f"{look['dataset']}_{look['target']}").strip("_").lower()
    )
    plots: list[Plot] = []
    notes = [*_texts(look, "notes")]
    for key, figure in as_map(look.get("figures")).items():
        if "numbers" in figure:
            plots += _drawn(key, figure, f"figure_{prefix}_{key}")
        else:
            notes.append(f"Not drawn: {_WHAT.get(key, key)}: {figure.get('missing') or 'no numbers'}.")
    return _Split(title, tuple(plots), tuple(f"{note.rstrip('.')}." for note in notes))


def _drawn(key: str, figure: Mapping[str, Any], name: str) -> list[Plot]:
    numbers, title = figure["numbers"], _TITLES.get(key, "")
    match figure.get("kind"):
        case "accuracy_against_members":
            return [draw_accuracy_against_members(numbers, title=title, name=name)]
        case "gain_against_diversity":
            plots = [draw_gain_against_diversity(numbers, title=title, name=name)]
            if sum(size["slope"] is not None for size in numbers["sizes"]) > 1:
                plots.append(draw_slope_against_members(numbers, title=title, name=f"{name}_slope"))
            return plots
        case "accuracy_against_share":
            return [draw_accuracy_against_share(numbers, title=title, name=name)]
        case "accuracy_against_tasks":
            plot = draw_accuracy_against_tasks(numbers, title=title, name=name)
            return [_with_words(plot, "The pre-trained start, theta_pt, counts as one of the tasks.")]
        case "interpolation_curve":
            names = as_list(figure.get("names"))
            if len(names) != numbers["ends"]:
                return [draw_interpolation_curve(numbers, title=title, name=name)]
            if len(names) == 2:
                return [draw_interpolation_curve(numbers, names=names, title=title, name=name)]
            told = ", ".join(f"{letter}: {each}" for letter, each in zip("ABC", names, strict=True))
            return [_with_words(draw_interpolation_curve(numbers, title=title, name=name), f"{told}.")]
        case kind:
            raise InputError(
                f"evidence {key!r}: expected a figure of a kind that can be drawn, got {kind!r}. Take the evidence as "
                "`look_into_split` returned it."
            )


def _with_words(plot: Plot, words: str) -> Plot:
    """The same figure with a longer caption."""
    return replace(plot, caption=f"{plot.caption} {words}")


# Files.


def _html(page: _Page) -> str:
    from markupsafe import Markup

    template = page_template("benchmark.html")
    splits = [
        {
            "title": split.title,
            "notes": split.notes,
            # Markup: the drawing is ours, and names within it were escaped when it was drawn.
            "figures": [{"caption": p.caption, "svg": Markup(p.svg(inline=True))} for p in split.plots],
        }
        for split in page.splits
    ]
    return template.render(page=page, splits=splits)


def _markdown(page: _Page) -> str:
    blocks = [f"# {_plain(page.title)}"]
    if page.facts:
        blocks.append(_terms(page.facts))
    blocks.append("## When not to trust it")
    trust = [f"- **{level.capitalize()}**: {_plain(text)}" for level, text in page.trust]
    blocks.append("\n".join(trust) or "Nothing suspicious was found.")
    blocks.append("## Tables")
    for result in page.results:
        blocks.append(f"### {_plain(result.title)}")
        blocks += [_plain(result.caption)] if result.caption else []
        blocks.append(_table(result.table))
        blocks += ["Missing:", _items(result.missing)] if result.missing else []
    blocks.append("## Why")
    for split in page.splits:
        blocks.append(f"### {_plain(split.title)}")
        for plot in split.plots:
            blocks += [f"![{_plain(plot.alt)}](figures/{plot.name}.svg)", _plain(plot.caption)]
        blocks += [_items(split.notes)] if split.notes else []
    blocks += [] if page.splits else ["No figures were asked for."]
    blocks.append("## Details")
    if page.rows.lines:
        blocks += ["### Rows and their equations", _equations(page.rows)]
    if page.protocol:
        blocks += ["### Protocol", _terms(page.protocol)]
    if page.diverged:
        blocks += ["### Trainings that diverged", _items(page.diverged)]
    if page.failed:
        blocks += ["### What could not be carried out", _terms(page.failed)]
    if page.command or page.environment:
        blocks.append("### How to reproduce")
        blocks += [_code(page.command)] if page.command else []
        blocks += [_terms(page.environment)] if page.environment else []
    blocks += ["### Notes", _items(page.notes)] if page.notes else []
    return "\n\n".join(blocks) + "\n"


def _equations(rows: Table) -> str:
    lines = ["| Row | Equation | Key |", "| --- | --- | --- |"]
    lines += ["| " + " | ".join(_plain(cell.text) for cell in line) + " |" for line in rows.lines]
    return "\n".join(lines)


# Words.


def _texts(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(str(text) for text in as_list(values.get(key)))


def _named(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Names and values of a mapping, as words."""
    return tuple(
        (
            str(key).replace("_", " ").capitalize() if str(key).islower() else str(key),
            ", ".join(map(setting, value)) if isinstance(value, list) else setting(value),
        )
        for key, value in values.items()
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
