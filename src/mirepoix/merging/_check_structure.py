"""How the structure of one file differs from that of the others, in words a person can act on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.merging._findings import tensors
from mirepoix.merging._inputs import EMBEDDINGS, HEADS, Source, is_float

__all__ = ["Structure", "differences", "find_head", "structure_of"]

Structure: TypeAlias = dict[str, tuple[str, tuple[Any, ...]]]
"""Kind ("float", or the dtype of integers) and shape of each tensor by name."""

HEAD = re.compile(
    r"(^|\.)(fc|classifier|heads?|lm_head|score|logits|output|last_linear)(\.(\d+|fc|head|out_proj))?\.(weight|bias)$"
    r"|^linear\.(weight|bias)$"
)
"""What timm, torchvision, Transformers and we call the last layer."""


def structure_of(source: Source, leave_out: Mapping[str, str], rows: bool = False) -> Structure:
    """Names, kinds and shapes; with ``rows``, any number of rows is the same."""
    structure: Structure = {}
    for name in source.names:
        if name in leave_out:
            continue
        code, shape = source.code(name), source.shape(name)
        kind = "float" if is_float(code) or code.startswith(("F8", "C")) else DTYPES[code][0]
        structure[name] = kind, ("any", *shape[1:]) if rows and shape and kind == "float" else shape
    return structure


def differences(own: Structure, others: Structure, who: str) -> list[tuple[str, str]]:
    """Each difference from the expected structure, and what to do about it."""
    if own == others:
        return []
    result = []
    prefix, is_own = _prefix(own, others)
    if prefix:
        pattern = "^" + prefix.replace(".", r"\.")
        whose = "its names begin" if is_own else f"the names of {who} begin"
        advice = f"Drop it while merging: rename={{{pattern!r}: ''}} (--rename '{pattern}=')."
        result.append((f"has other names: {whose} with {prefix!r}", advice))
        own, others = (
            {name.removeprefix(prefix): kind for name, kind in side.items()} for side in (own, others)
        )
    lacks = [name for name in others if name not in own]
    extra = [name for name in own if name not in others]
    if lacks or extra:
        result.append(_names(own, others, lacks, extra, who))
    common = [name for name in own if name in others]
    kinds = [name for name in common if own[name][0] != others[name][0]]
    if kinds:
        what = f"holds {tensors(kinds)} as {own[kinds[0]][0]}, {who} as {others[kinds[0]][0]}"
        result.append((what, "Convert it to the dtype that the network declares."))
    shapes = [name for name in common if own[name][1] != others[name][1] and name not in kinds]
    if shapes:
        result.append(_shapes(own, others, shapes, who))
    return result


def find_head(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The layer that, by its name, makes the outputs: its name and number of rows; or None."""

    def place(name: str) -> tuple[int, list[int]]:  # the outermost, and of numbered layers the last
        return -name.count("."), [int(number) for number in re.findall(r"\d+", name)]

    heads = [name for name, shape in shapes.items() if HEAD.search(name) and len(shape) > 1]
    if not heads:
        return None
    name = max(heads, key=place)
    return {"name": name.rpartition(".")[0], "rows": shapes[name][0]}


def _prefix(own: Structure, others: Structure) -> tuple[str, bool]:
    """What all names of one side begin with and none of the other, and whether that side is its own."""
    for long, short, is_own in ((own, others, True), (others, own, False)):
        first = min(short, key=len, default="")
        for name in long:
            prefix = name.removesuffix(first)
            # Names that overlap, such as 'a' and 'a.a', could be read both ways: the sets decide.
            if prefix not in ("", name) and {prefix + other for other in short} == long.keys():
                return prefix, is_own
    return "", False


def _names(
    own: Structure, others: Structure, lacks: list[str], extra: list[str], who: str
) -> tuple[str, str]:
    parts = [f"lacks {tensors(lacks)}"] if lacks else []
    parts += [f"has {tensors(extra)} besides"] if extra else []
    what = " and ".join(parts) + f", unlike {who}"
    both = [*lacks, *extra]
    if all(name.endswith("num_batches_tracked") for name in both):
        return what, "These counters do not matter: pass names='union' (--names union)."
    if lacks and extra and Counter(own[n] for n in extra) == Counter(others[n] for n in lacks):
        like = next(name for name in lacks if others[name] == own[extra[0]])
        old, new = _apart(extra[0], like)
        pattern = f"^{re.escape(old)}"
        return what, (
            f"They have the same shapes under other names. If they mean the same, rename them: rename={{{pattern!r}: "
            f"{new!r}}} (--rename '{pattern}={new}')."
        )
    if all(HEAD.search(name) for name in both):
        return what, (
            "Their heads differ. Attach one head to all with `with_head(theta, head)`, or average what all share with "
            "names='intersection' (--names intersection)."
        )
    return what, (
        "Members need one architecture. Rename tensors (rename=, --rename), or average what all share with "
        "names='intersection' (--names intersection)."
    )


def _apart(old: str, new: str) -> tuple[str, str]:
    """Two names without the end they share, cut at a dot."""
    olds, news = old.split("."), new.split(".")
    while len(olds) > 1 and len(news) > 1 and olds[-1] == news[-1]:
        olds.pop()
        news.pop()
    return ".".join(olds), ".".join(news)


def _shapes(own: Structure, others: Structure, names: list[str], who: str) -> tuple[str, str]:
    pairs = [(own[name][1], others[name][1]) for name in names]
    some = [f"{name!r} is {a} instead of {b}" for name, (a, b) in zip(names, pairs, strict=True)]
    which = ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")
    only_rows = all(a and b and a[1:] == b[1:] for a, b in pairs)
    a, b = next((pair for pair in pairs if len(pair[0]) > 1), pairs[0])
    modules = {name.rpartition(".")[0] for name in names}
    if only_rows and all(name.endswith(EMBEDDINGS) or name in HEADS for name in names):
        return f"has a vocabulary of {a[0]} rows, {who} of {b[0]}: {which}", (
            "If words were added at the end, pass rows=True (--rows): common rows are averaged, the others copied."
        )
    if only_rows and len(modules) == 1:
        return f"has a head of {a[0]} rows, {who} of {b[0]}: {which}", (
            "Members need the same classes and the same head to start from: attach one before fine-tuning with "
            f"`with_head(theta, head, prefix={modules.pop() + '.'!r})`."
        )
    if all(len(a) == 2 and a == b[::-1] for a, b in pairs):
        return f"has {tensors(names)} transposed, compared with {who}: {which}", (
            "It was saved by another library: export it with the one that wrote the others."
        )
    return f"has {tensors(names)} of another shape than {who}: {which}", (
        "It is another architecture or width: leave it out."
    )
