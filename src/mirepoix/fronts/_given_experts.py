"""Experts from files: whether they belong together, as far as files can tell, and their soups."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirepoix.checkpoints import fingerprint, open_weights, read_json
from mirepoix.checkpoints._checkpoint import record_path
from mirepoix.merging import LoraAdapter, check_files, open_adapter
from mirepoix.merging._check import scan
from mirepoix.merging._check_models import record_of
from mirepoix.merging._findings import listed
from mirepoix.merging._inputs import open_source
from mirepoix.rewards import Expert
from mirepoix.rewards._points import written
from mirepoix.rewards._sweep import SoupBuffers
from mirepoix.store import key_of
from mirepoix.types import InputError, Weights

if TYPE_CHECKING:
    from mirepoix.rewards.text import TextStart

__all__ = ["GivenExperts", "Point", "quoted"]

ADAPTER = "adapter_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
NOISE = "Soups of experts without a common start are noise"


@dataclass(frozen=True)
class Point:
    """A soup, or the start.

    Attributes:
        place: What messages call it.
        made_of: The content that decides its weights, as plain values.
        weights: Makes them; what was made before is overwritten.
        shares: The coefficients; none of the start.
    """

    place: str
    made_of: list[Any]
    weights: Callable[[], Weights]
    shares: dict[str, float]


@dataclass
class GivenExperts:
    """Experts in files.

    Attributes:
        paths: Files of weights, folders of models or folders of adapters, by name.
        start: The common start, or the base of the adapters, if it is given.
        speaks: Whether the weights are those of a language model that is to complete prompts.
        container: Where the weights are in torch files that hold several.
        force: Let through starts that differ or are unknown, with a warning.
        warnings: What was let through.
    """

    paths: dict[str, Path]
    start: Path | None
    speaks: bool
    container: str | None = None
    force: bool = False
    warnings: list[str] = field(default_factory=list)

    # What files tell

    @cached_property
    def are_adapters(self) -> bool:
        """Whether all experts are folders of adapters."""
        return all((path / ADAPTER).is_file() for path in self.paths.values())

    @cached_property
    def starts_with_adapter(self) -> bool:
        """Whether the start is a base and an adapter."""
        return self.start is not None and (self.start / ADAPTER).is_file()

    @cached_property
    def base(self) -> Path | None:
        """The weights that adapters change: those of the start, or those they name if these lie here.

        Raises:
            InputError: If adapters name others.
        """
        if not self.starts_with_adapter and (self.start is not None or not self.are_adapters):
            return self.start
        holder = self.start if self.start is not None else next(iter(self.paths.values()))
        named = read_json(holder / ADAPTER).get("base_model_name_or_path")
        for place in (Path(str(named)), holder / str(named)) if named else ():
            if (place / "config.json").is_file():
                return place
        if self.start is None:
            raise InputError(
                f"--start: the experts are adapters of {named!r}, and there is no such folder here. Name the folder of "
                "the weights they were trained on: --start FOLDER."
            )
        raise InputError(
            f"--start: {self.start} is an adapter of {named!r}, and there is no such folder here. Correct "
            f"base_model_name_or_path in {self.start / ADAPTER}."
        )

    @cached_property
    def text_start(self) -> TextStart | None:
        """Network and tokenizer of a language model.

        Raises:
            InputError: If nothing says where they are.
        """
        if not self.speaks:
            return None
        from mirepoix.rewards.text import TextStart

        if self.base is None:
            raise InputError(
                "--prompts: needs a network and its tokenizer. Name the folder of the common start: --start FOLDER."
            )
        return TextStart(self.base)

    def check(self, replaced: Sequence[Path]) -> str:
        """Raise unless the experts can be averaged and share a start, as far as files tell.

        Args:
            replaced: Files that are to be written.

        Returns:
            What is known of the start.

        Raises:
            InputError: With the verdict of `mirepoix.merging.check_files`; for other tokenizers; for starts that differ
                or are unknown; if a record beside an expert would be replaced.
        """
        paths = [str(path) for path in self.paths.values()]
        base = None if self.start is None or self.starts_with_adapter else str(self.start)
        found = check_files(paths, base=base, container=self.container)
        if not found.ok:
            faults = [
                f"{fault.member + ': ' if fault.member else ''}{fault.what.rstrip('.')}. {fault.advice}".strip()
                for fault in found.faults
            ]
            raise InputError("\n  ".join([f"front: {found.verdict}", *dict.fromkeys(faults)]))
        self.warnings += [text for text in found.warnings if not text.startswith("starts differ")]
        self._check_tokenizers()
        for path in paths:
            for file in open_weights(path, container=self.container).files:
                for place in replaced:
                    if _same(record_path(file), place) or _same(file, place):
                        raise InputError(
                            f"{place}: lies beside the expert {file} and would be replaced. Choose another --out."
                        )
        return self._check_starts()

    def _check_tokenizers(self) -> None:
        """Experts and start that bring tokenizers bring the same."""
        folders = {name: path for name, path in self.paths.items() if path.is_dir()}
        if self.start is not None and self.start.is_dir():
            folders = {"--start": self.start, **folders}
        digests = {name: _tokenizer(folder) for name, folder in folders.items()}
        seen: dict[str, str] = {}
        for name, found in digests.items():
            for file in found:
                other = seen.setdefault(file, name)
                if digests[other][file] != found[file]:
                    raise InputError(
                        f"front: {_called(other)} and {_called(name)} have different tokenizers ({file} in "
                        f"{folders[other]} and in {folders[name]}). The same weights would read other words; take "
                        "experts that were trained with one tokenizer."
                    )

    def _check_starts(self) -> str:
        told, named = self._told_starts()
        self._refuse_other_starts(told)
        unknown = [name for name in self.paths if name not in told and name not in named]
        several = list(dict.fromkeys(named.values()))
        if len(several) > 1:
            values = "; ".join(f"{value!r} for {name!r}" for name, value in named.items())
            self._let_through(
                f"experts name different starts in their config.json: {values}",
                "If these are the same weights, name them: --start PATH",
            )
        if unknown or (told and named):
            without = unknown or list(named)
            self._let_through(
                f"it is not known from which weights {quoted(without)} started",
                f"No record lies beside {'them' if len(without) > 1 else 'it'}. If all experts are fine-tunings of the "
                "same weights, name these: --start PATH",
            )
        if self.start is not None:
            return f"{self.start}" + (
                ", as the records of all experts say" if len(told) == len(self.paths) else ""
            )
        if unknown or len(several) > 1:
            return "not known"
        if told:
            return f"the same in the records of all experts, {next(iter(told.values())):.12}"
        kind = "the base that all adapters name" if self.are_adapters else "the same by its name"
        return f"{kind}, {several[0]}"

    def _told_starts(self) -> tuple[dict[str, str], dict[str, str]]:
        """Fingerprints of the start in records, and names of it in settings, by expert."""
        told: dict[str, str] = {}
        named: dict[str, str] = {}
        for name, path in self.paths.items():
            source = open_source(str(path), str(path), container=self.container)
            made_of = (record_of(source) or _record_in(path)).get("made_of")
            digest = made_of.get("theta") if isinstance(made_of, dict) else None
            config = getattr(source.checkpoint, "config", None) or {}
            base = config.get("base_model_name_or_path" if self.are_adapters else "_name_or_path")
            if isinstance(digest, str) and digest:
                told[name] = digest
            elif self.are_adapters and isinstance(base, str) and re.fullmatch(r"[0-9a-f]{16}", base):
                told[name] = base  # the head of a fingerprint, as our own trainer of texts writes it
            elif isinstance(base, str) and base and self._differs(base):
                self._let_through(
                    f"expert {name!r} names {base} as its start, whose weights are other ones than those of --start "
                    f"{self.start}",
                    None,
                )
            elif isinstance(base, str) and base:
                named[name] = base
            source.close()
        return told, named

    def _differs(self, base: str) -> bool:
        """Whether a start that is named by its place lies there, and is not the one that is given."""
        if self.start is None or self.starts_with_adapter or not Path(base).is_dir():
            return False
        return fingerprint(open_weights(base)) != self.start_fingerprint

    def _refuse_other_starts(self, told: Mapping[str, str]) -> None:
        first = next(iter(told), None)
        if first is None:
            return
        for name, digest in told.items():
            if not _agree(digest, told[first]):
                self._let_through(
                    f"experts {first!r} and {name!r} started from different weights, {told[first]:.12} and "
                    f"{digest:.12}",
                    None,
                )
        if (
            self.start is not None
            and not self.starts_with_adapter
            and not _agree(told[first], self.start_fingerprint)
        ):
            self._let_through(
                f"expert {first!r} started from the weights {told[first]:.12}, and --start {self.start} is "
                f"{self.start_fingerprint:.12}",
                None,
            )

    def _let_through(self, text: str, advice: str | None) -> None:
        """Refuse what is unknown, unless the start is given, and what is known to differ, unless forced."""
        on_word = advice is not None and self.start is not None
        if not on_word and not self.force:
            todo = (
                f"{advice}; or pass --force. {NOISE}."
                if advice
                else f"{NOISE}; --force makes them all the same."
            )
            raise InputError(f"front: {text}. {todo}")
        end = f"; {self.start} is taken on your word." if on_word else "."
        self.warnings.append(f"{text[0].upper()}{text[1:]}{end}")

    @cached_property
    def start_fingerprint(self) -> str:
        """Of the weights of the start, where these are no adapter."""
        assert self.start is not None
        if self.text_start is not None:
            return self.text_start.fingerprint
        return fingerprint(open_weights(self.start, container=self.container))

    def diverged(self) -> dict[str, str]:
        """Experts whose weights are not finite, and what to say of each."""
        found = {}
        for name, path in self.paths.items():
            source = open_source(str(path), str(path), container=self.container)
            bad = next((tensor for tensor in source.names if any(scan(source, tensor))), None)
            source.close()
            if bad is not None:
                found[name] = (
                    f"Expert {name!r} ({path}) diverged and is left out: {bad!r} holds NaN or infinity."
                )
        return found

    # Weights

    def points(self, design: Sequence[Mapping[str, float]]) -> list[Point]:
        """The soups with the given coefficients, to be made when they are asked for."""
        soups = (_AdapterSoups if self.are_adapters else _DenseSoups)(self, list(design[0]))

        def point(shares: Mapping[str, float]) -> Point:
            made_of = [[soups.fingerprints[name], share] for name, share in shares.items() if share]
            return Point(f"lambda = {written(shares)}", made_of, lambda: soups.soup(shares), dict(shares))

        return [point(shares) for shares in design]

    def start_point(self) -> Point | None:
        """The start by itself, if it is given."""
        if self.start is None:
            return None
        theta: Weights
        if self.starts_with_adapter:
            base, digest = self.base_weights
            adapter = open_adapter(self.start)
            theta = _adapted(base, {"start": adapter}, {"start": str(self.start)})
            digest = _adapter_fingerprint(adapter, digest)
        elif self.text_start is not None:
            theta, digest = self.text_start.weights, self.start_fingerprint
        else:
            theta, digest = open_weights(self.start, container=self.container), self.start_fingerprint
        lazy = self.speaks
        return Point(
            "the start", [[digest, 1.0]], lambda: theta if lazy else {n: theta[n] for n in theta}, {}
        )

    @cached_property
    def base_weights(self) -> tuple[Weights, str]:
        """The weights that adapters change, and their fingerprint."""
        if self.text_start is not None:
            return self.text_start.weights, self.text_start.fingerprint
        theta = open_weights(str(self.base))
        return theta, fingerprint(theta)


class _DenseSoups:
    """Of whole models: one set of tensors, into which each soup is written."""

    def __init__(self, given: GivenExperts, names: Sequence[str]) -> None:
        thetas = {name: open_weights(given.paths[name], container=given.container) for name in names}
        self.fingerprints = {name: fingerprint(theta) for name, theta in thetas.items()}
        self._buffers = SoupBuffers(
            [Expert(name, name, theta) for name, theta in thetas.items()], None, False
        )

    def soup(self, shares: Mapping[str, float]) -> Weights:
        return self._buffers.write(shares)


class _AdapterSoups:
    r"""Of adapters over their base, :math:`\theta_0 + \sum_i \lambda_i s_i B_i A_i`."""

    def __init__(self, given: GivenExperts, names: Sequence[str]) -> None:
        self.base, digest = given.base_weights
        self.paths = {name: str(given.paths[name]) for name in names}
        self.adapters = {name: open_adapter(path) for name, path in self.paths.items()}
        _adapted(self.base, self.adapters, self.paths)  # so that what does not fit is told now
        self.fingerprints = {
            name: _adapter_fingerprint(adapter, digest) for name, adapter in self.adapters.items()
        }
        self.lazy = given.speaks
        self._tensors: dict[str, Any] = {}

    def soup(self, shares: Mapping[str, float]) -> Weights:
        part = {name: self.adapters[name] for name, share in shares.items() if share}
        theta = _adapted(self.base, part, self.paths, {name: shares[name] for name in part})
        if self.lazy:
            return theta  # the network takes what the adapters change, and no more
        for name in theta:
            if name in self._tensors:
                self._tensors[name].detach().copy_(theta[name])
            else:
                self._tensors[name] = theta[name]
        return self._tensors


def _adapted(
    base: Weights,
    adapters: Mapping[str, LoraAdapter],
    paths: Mapping[str, str],
    shares: Mapping[str, float] | None = None,
) -> Weights:
    from mirepoix.rewards.text import AdaptedWeights

    try:
        return AdaptedWeights(base, adapters, shares or dict.fromkeys(adapters, 1.0))
    except InputError as error:
        folder = next((paths[name] for name in adapters if f"adapter {name!r}" in str(error)), "ADAPTER")
        raise InputError(
            f"front: {error} Or make each a whole model and name that: mirepoix soup {folder} --lora dense --base BASE "
            "-o FOLDER."
        ) from error


def _adapter_fingerprint(adapter: LoraAdapter, base: str) -> str:
    """Of the weights that base and adapter stand for."""
    factors = {
        name: adapter.values(name) for layer in adapter.layers.values() for name, _ in (layer.a, layer.b)
    }
    scales = {module: layer.scale for module, layer in adapter.layers.items()}
    turned = bool(adapter.config.get("fan_in_fan_out"))
    return key_of({"base": base, "factors": fingerprint(factors), "scales": scales, "turned": turned})


def _agree(one: str, other: str) -> bool:
    """Fingerprints, of which one may be cut short."""
    size = min(len(one), len(other))
    return one[:size] == other[:size]


def _record_in(path: Path) -> dict[str, Any]:
    """The record of a folder of a store."""
    file = path / "record.json"
    if not file.is_file():
        return {}
    try:
        record = read_json(file)
    except InputError:
        return {}
    return record if isinstance(record, dict) else {}


def _tokenizer(folder: Path) -> dict[str, str]:
    """Digests of the files of a tokenizer; how a trainer pads and cuts does not count."""
    found = {}
    for name in TOKENIZER:
        file = folder / name
        if not file.is_file():
            continue
        content = file.read_bytes()
        if name == "tokenizer.json":
            try:
                settings = json.loads(content)
            except ValueError:
                settings = None
            if isinstance(settings, dict):
                settings = {
                    key: value for key, value in settings.items() if key not in ("padding", "truncation")
                }
                content = json.dumps(settings, sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _called(name: str) -> str:
    return name if name == "--start" else f"expert {name!r}"


def quoted(names: Any) -> str:
    """Names in quotes, not all if they are many."""
    return listed([repr(name) for name in names]) if names else ""


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
