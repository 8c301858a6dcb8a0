"""Checkpoints under other names: an engine for rename tables that it is handed.

A table is a list of rules, first match wins. Patterns are names with `{placeholders}`; a placeholder stands for one
part between dots. Every tensor must be spoken for: what no rule names is an error, never dropped in silence.
Tensors without data (torch's `meta` device) may be given too: then only names and shapes are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rename:
    """One tensor under two names, possibly turned (`transpose`) or stored with a leading 1 (`squeeze`)."""

    published: str
    ours: str
    transpose: bool = False
    squeeze: bool = False


@dataclass(frozen=True)
class Stack:
    """Several published tensors that we keep as one, laid end to end along dimension `dim`."""

    published: tuple[str, ...]
    ours: str
    dim: int = 0


@dataclass(frozen=True)
class Alias:
    """A second published name of the tensor `of`. Must be equal to it; written again at export."""

    published: str
    of: str
    must_agree: bool = True
    """False: where they differ, the numbers of `of` count."""


@dataclass(frozen=True)
class Count:
    """A published tensor [1, n] that only counts the rows of `of`: 0, 1, 2 … Checked, dropped, written at export."""

    published: str
    of: str


@dataclass(frozen=True)
class Drop:
    """A published tensor that we do not need, and why."""

    published: str
    reason: str


@dataclass(frozen=True)
class Absent:
    """What we keep and the published file does not: the tensor `ours`, or all below it; and why that is fine."""

    ours: str
    reason: str


Rule = Rename | Stack | Alias | Count | Drop | Absent


@dataclass(frozen=True)
class Report:
    """What became of each published tensor."""

    loaded: dict[str, str] = field(default_factory=dict)
    """Published name → our name."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Published name → reason."""
    missing: dict[str, str] = field(default_factory=dict)
    """Our name → why the file need not have it, and what stands there instead."""


@cache
def _matcher(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    regex = "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>[^.]+)" for i, part in enumerate(parts))
    return re.compile(regex)


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], pattern)


def _patterns(rule: Rule) -> tuple[str, ...]:
    if isinstance(rule, Absent):
        return ()
    return rule.published if isinstance(rule, Stack) else (rule.published,)


def find_rule(name: str, rules: Sequence[Rule]) -> tuple[Rule, int, dict[str, str]] | None:
    """The first rule that names `name`, which of its patterns did, and the placeholders' values."""
    for rule in rules:
        for place, pattern in enumerate(_patterns(rule)):
            if match := _matcher(pattern).fullmatch(name):
                return rule, place, match.groupdict()
    return None


def from_published(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> tuple[dict[str, Tensor], Report]:
    """Our names for a published state. Raises ValueError that lists whatever no rule names or does not fit."""
    report, unknown = Report(), list[str]()
    ours: dict[str, Tensor] = {}
    stacks: dict[str, tuple[Stack, dict[int, Tensor]]] = {}
    for name, tensor in state.items():
        found = find_rule(name, rules)
        if found is None:
            unknown.append(name)
            continue
        rule, place, values = found
        if isinstance(rule, Drop):
            report.dropped[name] = rule.reason
        elif isinstance(rule, Alias):
            if rule.must_agree:
                _check_alias(name, tensor, state.get(_fill(rule.of, values)))
            report.dropped[name] = f"second name of {_fill(rule.of, values)}"
        elif isinstance(rule, Count):
            _check_count(name, tensor)
            report.dropped[name] = "consecutive numbers, counted when needed"
        else:
            assert not isinstance(rule, Absent), "names nothing that a file has"
            target = _fill(rule.ours, values)
            report.loaded[name] = target
            if isinstance(rule, Stack):
                stacks.setdefault(target, (rule, {}))[1][place] = tensor
            else:
                tensor = tensor.squeeze() if rule.squeeze else tensor
                ours[target] = tensor.t().contiguous() if rule.transpose else tensor
    if unknown:
        raise ValueError(f"{len(unknown)} tensors of the checkpoint are not known: " + ", ".join(sorted(unknown)[:10]))
    for target, (stack, pieces) in stacks.items():
        if len(pieces) < len(stack.published):
            raise ValueError(f"the checkpoint lacks a part of {target}")
        ours[target] = torch.cat([pieces[i] for i in range(len(pieces))], dim=stack.dim)
    return ours, report


def _check_alias(name: str, tensor: Tensor, same: Tensor | None) -> None:
    if same is None or same.shape != tensor.shape or not (tensor.is_meta or torch.equal(tensor, same)):
        raise ValueError(f"{name} should hold the same numbers as the tensor that it is tied to, and does not")


def _check_count(name: str, tensor: Tensor) -> None:
    if not tensor.is_meta and tensor.flatten().tolist() != list(range(tensor.numel())):
        raise ValueError(f"{name} should count 0, 1, 2 …, and does not: the file numbers its positions otherwise")


def absences(wanted: Iterable[str], ours: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, str]:
    """Wanted names that `ours` lacks, each with the reason that a rule gives.

    Raises ValueError that lists those for which there is none: a part of the file is missing.
    """
    lacking = [name for name in wanted if name not in ours]
    reasons = {name: _absent(name, rules) for name in lacking}
    if unexplained := [name for name, reason in reasons.items() if reason is None]:
        some = ", ".join(sorted(unexplained)[:10])
        raise ValueError(f"the checkpoint lacks {len(unexplained)} tensors that it should have: {some}")
    return {name: reason for name, reason in reasons.items() if reason is not None}


def to_published(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Published names for our state: the inverse. Raises ValueError for tensors that have no published name."""
    published: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _absent(name, rules) is not None:
            continue
        rule, values = _inverse(name, rules)
        if isinstance(rule, Stack):
            parts = tensor.chunk(len(rule.published), dim=rule.dim)
            published |= {_fill(pattern, values): part for pattern, part in zip(rule.published, parts, strict=True)}
        else:
            tensor = tensor.t().contiguous() if rule.transpose else tensor
            published[_fill(rule.published, values)] = tensor[None] if rule.squeeze else tensor
    for alias in (rule for rule in rules if isinstance(rule, Alias)):
        same = {name: _matcher(alias.of).fullmatch(name) for name in published}
        published |= {_fill(alias.published, m.groupdict()): published[name] for name, m in same.items() if m}
    return published


def counts(published: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The tensors that only count, which a whole published file has beside the others."""
    found: dict[str, Tensor] = {}
    for rule in (rule for rule in rules if isinstance(rule, Count)):
        for name, tensor in published.items():
            if match := _matcher(rule.of).fullmatch(name):
                found[_fill(rule.published, match.groupdict())] = torch.arange(len(tensor))[None]
    return found


def _absent(name: str, rules: Sequence[Rule]) -> str | None:
    """Why a published file need not have our tensor `name`; None when it must."""
    for rule in rules:
        if isinstance(rule, Absent) and (match := _matcher(rule.ours).match(name)) and name[match.end() :][:1] in ".":
            return rule.reason
    return None


def _inverse(name: str, rules: Sequence[Rule]) -> tuple[Rename | Stack, dict[str, str]]:
    for rule in rules:
        if isinstance(rule, Rename | Stack) and (match := _matcher(rule.ours).fullmatch(name)):
            return rule, match.groupdict()
    raise ValueError(f"{name} has no published name: the released layout has no place for it")
