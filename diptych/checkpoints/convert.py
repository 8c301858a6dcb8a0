"""Translates states between our names of tensors and published ones, by tables of rules.

The first rule that matches a name applies. Patterns are names with `{placeholders}`, each of which stands for one part
between dots. A tensor that no rule names is an error; nothing is dropped without a stated reason. Tensors without data
(on torch's `meta` device) are translated too, and then only names and shapes are checked.
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
    """One tensor under two names. It may be published transposed, or with an extra dimension of 1 (`squeeze`).

    `lead`: the number of first dimensions of 1 that ours has and the published tensor lacks.
    """

    published: str
    ours: str
    transpose: bool = False
    squeeze: bool = False
    lead: int = 0


@dataclass(frozen=True)
class Stack:
    """Several published tensors that we keep as one, concatenated along dimension `dim`."""

    published: tuple[str, ...]
    ours: str
    dim: int = 0


@dataclass(frozen=True)
class Alias:
    """A second published copy of the tensor `of`. It is checked and dropped, and written again at export."""

    published: str
    of: str
    must_agree: bool = True
    """Whether both must be equal. Where they need not be, the values of `of` are used."""


@dataclass(frozen=True)
class Count:
    """A published tensor [1, n] that only numbers the n rows of `of`: 0, 1, 2 … It is treated like an `Alias`."""

    published: str
    of: str


@dataclass(frozen=True)
class Drop:
    """A published tensor that we do not need, and the reason."""

    published: str
    reason: str


@dataclass(frozen=True)
class Absent:
    """A tensor of ours that a published file need not have, or a part with all its tensors, and the reason."""

    ours: str
    reason: str


Rule = Rename | Stack | Alias | Count | Drop | Absent


@dataclass(frozen=True)
class Report:
    """Says what became of each published tensor."""

    loaded: dict[str, str] = field(default_factory=dict)
    """Published name → our name."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Published name → reason."""
    missing: dict[str, str] = field(default_factory=dict)
    """Our name → why the file need not have it, and what it starts as instead."""


@cache
def _matcher(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    regex = "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>[^.]+)" for i, part in enumerate(parts))
    return re.compile(regex)


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda placeholder: values[placeholder[1]], pattern)


def _patterns(rule: Rule) -> tuple[str, ...]:
    if isinstance(rule, Absent):
        return ()
    return rule.published if isinstance(rule, Stack) else (rule.published,)


def find_rule(name: str, rules: Sequence[Rule]) -> tuple[Rule, int, dict[str, str]] | None:
    """Returns the first rule that matches `name`, the number of the pattern that did, and its placeholders' values."""
    for rule in rules:
        for place, pattern in enumerate(_patterns(rule)):
            if match := _matcher(pattern).fullmatch(name):
                return rule, place, match.groupdict()
    return None


def from_published(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> tuple[dict[str, Tensor], Report]:
    """Translates a published state to our names. Raises ValueError for tensors that no rule names or that misfit."""
    report, unknown = Report(), list[str]()
    ours: dict[str, Tensor] = {}
    stacks: dict[str, tuple[Stack, dict[int, Tensor]]] = {}
    for name, tensor in state.items():
        match = find_rule(name, rules)
        if match is None:
            unknown.append(name)
            continue
        rule, place, values = match
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
            assert not isinstance(rule, Absent), "no published name matches it"
            target = _fill(rule.ours, values)
            report.loaded[name] = target
            if isinstance(rule, Stack):
                stacks.setdefault(target, (rule, {}))[1][place] = tensor
            else:
                tensor = tensor.squeeze() if rule.squeeze else tensor[(None,) * rule.lead] if rule.lead else tensor
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
    """Returns the wanted names that `ours` lacks, each with the reason that a rule states.

    Raises ValueError listing the names without a reason: a part of the file is missing.
    """
    lacking = [name for name in wanted if name not in ours]
    reasons = {name: _absent(name, rules) for name in lacking}
    if unexplained := [name for name, reason in reasons.items() if reason is None]:
        names = ", ".join(sorted(unexplained)[:10])
        raise ValueError(f"the checkpoint lacks {len(unexplained)} tensors that it should have: {names}")
    return {name: reason for name, reason in reasons.items() if reason is not None}


def to_published(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Translates our state to published names. Raises ValueError for tensors that have no published name."""
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
            tensor = tensor[(0,) * rule.lead] if rule.lead else tensor
            published[_fill(rule.published, values)] = tensor[None] if rule.squeeze else tensor
    for alias in (rule for rule in rules if isinstance(rule, Alias)):
        matches = {name: _matcher(alias.of).fullmatch(name) for name in published}
        published |= {_fill(alias.published, m.groupdict()): published[name] for name, m in matches.items() if m}
    return published


def counts(published: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Makes the tensors of `Count` rules, which a complete published file holds beside the others."""
    numbers: dict[str, Tensor] = {}
    for rule in (rule for rule in rules if isinstance(rule, Count)):
        for name, tensor in published.items():
            if match := _matcher(rule.of).fullmatch(name):
                numbers[_fill(rule.published, match.groupdict())] = torch.arange(len(tensor))[None]
    return numbers


def _absent(name: str, rules: Sequence[Rule]) -> str | None:
    """Returns why a published file need not have our tensor `name`; None where it must."""
    for rule in rules:
        if isinstance(rule, Absent) and (match := _matcher(rule.ours).match(name)) and name[match.end() :][:1] in ".":
            return rule.reason
    return None


def _inverse(name: str, rules: Sequence[Rule]) -> tuple[Rename | Stack, dict[str, str]]:
    """Returns the first rule whose target is our tensor `name`, and its placeholders' values."""
    for rule in rules:
        if isinstance(rule, Rename | Stack) and (match := _matcher(rule.ours).fullmatch(name)):
            return rule, match.groupdict()
    raise ValueError(f"{name} has no published name: the released layout has no place for it")
