"""`diptych weights` and `diptych weights NAME …`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.pretrained.published import Published

EXAMPLES = """\
examples:
  diptych weights                              (all names, and which of them are here)
  diptych weights albef-4m bert-base           (fetches them, for a machine without a network, say)
  diptych weights --check                      (reads all that is here again: whether it is as it was fetched)

A name stands for the weights in diptych.load("albef-4m"), in diptych convert, in verbs that take a RUN, and in
init_from=deit-base+bert-base. DIPTYCH_WEIGHTS names the folder that keeps the files, as NAME/FILE; it may be shared.
DIPTYCH_WEIGHTS_MIRROR is an address below which NAME/FILE is looked for first.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych weights",
        description="List the published weights that can be used by name, or fetch some of them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="weights to fetch, unless they are here")
    parser.add_argument("--check", action="store_true", help="read files again that are here, and compare them")
    parser.add_argument("--addresses", action="store_true", help="list where the authors publish each file, too")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    options = parser.parse_args(arguments)

    from diptych.pretrained import named
    from diptych.pretrained.published import PUBLISHED, nearest, parts

    entries: list[Published] = []
    for name in options.names:
        if (known := parts(name)) is None:
            meant = f" Did you mean {near}?" if (near := nearest(name)) else ""
            raise ValueError(f"no published weights '{name}'.{meant} `diptych weights` lists all names")
        entries += known
    if options.check:
        present = {entry: file for entry in entries or PUBLISHED.values() if (file := named.here(entry)) is not None}
        if absent := [entry.name for entry in entries if entry not in present]:
            raise ValueError(f"{absent[0]} is not here: `diptych weights {absent[0]}` fetches it")
        for entry, file in present.items():
            print(f"{file}: {named.verify(entry, file)}")
        if not present:
            print(f"no published weights are in {named.weights_folder()}")
    elif entries:
        for entry in entries:
            print(f"{entry.name}: {named.get(entry)}")
    elif options.json:
        print(json.dumps([_facts(entry) for entry in PUBLISHED.values()], indent=1))
    else:
        print(_table([_facts(entry) for entry in PUBLISHED.values()], options.addresses))
        print(f"\nKept in {named.weights_folder()}. Sizes with ~ are estimates. See diptych weights --help.")


def _facts(entry: Published) -> dict[str, Any]:
    """Collects what is known of published weights."""
    from diptych.pretrained import named
    from diptych.pretrained.assemble import LAYOUTS

    file = named.here(entry)
    return {
        "name": entry.name,
        "what": entry.what,
        "can": list(LAYOUTS[entry.layouts[0]].able),
        "licence": entry.licence,
        "bytes": file.stat().st_size if file else entry.bytes,
        "estimated": file is None,
        "file": str(file) if file else None,
        "partly": 0 if file else named.partly_here(entry),
        "addresses": [named.address_of(place) for place in entry.places],
        "needs": entry.needs or None,
    }


def _table(facts: Sequence[dict[str, Any]], addresses: bool) -> str:
    width = max(len(fact["name"]) for fact in facts)
    lines = [f"{'name':{width}}  {'size':>8}  {'licence':12}  {'here':6}  what it is, and what it can do"]
    for fact in facts:
        size = f"{'~' if fact['estimated'] else ''}{fact['bytes'] / 1e9:.2f} GB"
        here = "yes" if fact["file"] else f"{100 * fact['partly'] / fact['bytes']:.0f} %" if fact["partly"] else ""
        lines.append(
            f"{fact['name']:{width}}  {size:>8}  {fact['licence']:12}  {here:6}  {fact['what']}: "
            f"{'; '.join(fact['can'])}"
        )
        if addresses:
            lines += [f"{'':{width}}    {address}" for address in fact["addresses"]]
    return "\n".join(lines)
