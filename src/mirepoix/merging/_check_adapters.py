"""What must agree between LoRA adapters: the layers they change, the shapes of these, and the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mirepoix.merging._findings import Findings, config_of, nbytes, tensors, usual
from mirepoix.merging._inputs import Source
from mirepoix.merging._lora_adapter import LoraAdapter
from mirepoix.types import InputError

__all__ = ["check_adapters", "is_adapter"]


def is_adapter(source: Source) -> bool:
    """Whether a file holds an adapter, by its settings or by its names."""
    return "peft_type" in config_of(source) or any(".lora_" in name for name in source.names)


def check_adapters(sources: Sequence[Source], base: Source | None, found: Findings) -> None:
    """Look at everything that `merge_adapters`, or `merge_into_base` with a base, would refuse."""
    opened: dict[int, LoraAdapter] = {}
    for source in sources:
        if "peft_type" not in config_of(source):
            found.fault(
                source,
                "holds the factors of an adapter without its settings",
                "Name its folder, in which adapter_config.json tells the scale.",
            )
            continue
        assert source.checkpoint is not None
        try:
            opened[id(source)] = LoraAdapter(config_of(source), source.checkpoint, source.label)
        except InputError as error:
            found.fault(source, str(error).removeprefix(f"{source.label}: "), "Mend it, or leave it out.")
    members = [source for source in sources if id(source) in opened]
    if not members:
        return
    _compare_layers(members, opened, found)
    _compare_bases(members, found)
    for source in members:
        adapter = opened[id(source)]
        if adapter.uses_dora and base is None:
            found.fault(
                source,
                "uses DoRA, which is not linear in its factors, so no adapter equals the merge",
                "Merge into the base: `mirepoix soup ... --lora dense --base BASE`, and --base here.",
            )
        if adapter.dropped:
            found.warnings.append(
                f"{source.label} has a value head, no part of the model: it will be left out."
            )
        if base is not None:
            _check_base(adapter, source, base, found)
    adapters = [opened[id(source)] for source in members]
    ranks: dict[str, int] = {}
    for adapter in adapters:
        for module, layer in adapter.layers.items():
            ranks[module] = ranks.get(module, 0) + layer.rank
    found.facts["adapters"] = {
        "layers": len(ranks),
        "ranks": sorted({layer.rank for a in adapters for layer in a.layers.values()}),
        "alphas": sorted({a.config["lora_alpha"] for a in adapters}),
        "rslora": any(bool(a.config.get("use_rslora")) for a in adapters),
        "dora": any(a.uses_dora for a in adapters),
        "patterns": any(a.config.get(key) for a in adapters for key in ("rank_pattern", "alpha_pattern")),
        "base": _base_name(members[0]),
        "result_rank": max(ranks.values()),
    }
    if base is None:  # the factors stand side by side
        found.facts["result_bytes"] = sum(map(nbytes, members))


def _compare_layers(sources: Sequence[Source], opened: Mapping[int, LoraAdapter], found: Findings) -> None:
    structures: dict[int, dict[str, Any]] = {}
    for source in sources:
        adapter = opened[id(source)]
        layers = {module: layer.frame for module, layer in adapter.layers.items()}
        whole = {name: ("saved whole", adapter.shape(name)) for name in adapter.others}
        structures[id(source)] = layers | whole
    group, who = usual(sources, lambda source: frozenset(structures[id(source)].items()))
    found.disagree = len(group) * 2 <= len(sources)
    expected = structures[id(group[0])]
    for source in sources:
        own = structures[id(source)]
        lacks, extra = [n for n in expected if n not in own], [n for n in own if n not in expected]
        parts = [f"does not change {tensors(lacks)}"] if lacks else []
        parts += [f"changes {tensors(extra)} besides"] if extra else []
        if parts:
            found.fault(
                source,
                " and ".join(parts) + f", unlike {who}",
                "merge_adapters(..., strict=False) lets an adapter change by 0 what it does not have.",
            )
        differ = [name for name in own if name in expected and own[name] != expected[name]]
        if differ:
            found.fault(
                source,
                f"changes {tensors(differ)} of another shape than {who}",
                "It was trained on another base: leave it out.",
            )


def _base_name(source: Source) -> str | None:
    name, revision = (config_of(source).get(key) for key in ("base_model_name_or_path", "revision"))
    return f"{name} at {revision}" if revision else name


def _compare_bases(sources: Sequence[Source], found: Findings) -> None:
    group, who = usual(sources, _base_name)
    expected = _base_name(group[0])
    for source in sources:
        if _base_name(source) != expected:
            found.fault(
                source,
                f"was trained on {_base_name(source)!r}, {who} on {expected!r}",
                "Leave it out; or, if it is one model under two names, correct base_model_name_or_path in its "
                "adapter_config.json, or pass same_base=False to merge_adapters.",
            )
    same = len(group) == len(sources)
    text = (
        "several bases" if not same else f"the base {expected!r}" if expected else "a base they do not name"
    )
    found.facts["start"] = {"known": len(sources), "same": same, "text": text}


def _check_base(adapter: LoraAdapter, source: Source, base: Source, found: Findings) -> None:
    """Whether the base has the weights that an adapter changes."""
    missing, other = [], []
    for module, layer in adapter.layers.items():
        plain = module.replace(".base_layer.", ".")
        names = [f"{plain}.{end}" for end in ("weight", "in_proj_weight")]
        name = next((name for name in names if name in base), None)
        straight = (layer.b[1][0], *layer.a[1][1:])
        if name is None:
            missing.append(names[0])
        elif base.shape(name) not in (straight, straight[::-1]):
            other.append(name)
    for wrong, what in (
        (missing, f"which {base.label} does not have"),
        (other, f"of another shape than in {base.label}"),
    ):
        if wrong:
            found.fault(
                source,
                f"changes {tensors(wrong)}, {what}",
                "Check that this is its base; names can be changed with rename= of merge_into_base.",
            )
