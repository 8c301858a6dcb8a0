"""`diptych plan RECIPE [name=value …] --devices 8xA100-40G`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

EXAMPLES = """\
examples:
  diptych plan albef_base --devices 8xA100-40G --pairs 5100000
  diptych plan vlmo_large --devices 128xV100-32G run.precision=bf16 run.parallel=fsdp
  diptych plan albef_tiny --devices this --check 5

Only --check trains and allocates weights. docs/scaling.md explains the numbers and their accuracy.
"""


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diptych plan",
        usage="diptych plan RECIPE --devices DEVICES [options] [name=value …]",
        description="Predict the parameters of a recipe, its memory and time by part, and its bottleneck.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a name that `diptych recipes` lists")
    parser.add_argument(
        "--devices",
        default="this",
        help="number and name of cards, as in 8xA100-40G, or this for this machine (default: this)",
    )
    parser.add_argument("--tokens", type=int, help="tokens of a text on average (default: data.max_tokens)")
    parser.add_argument("--pairs", type=float, help="pairs of the training data, where run.epochs counts it")
    parser.add_argument(
        "--price",
        type=float,
        metavar="PER_DEVICE_HOUR",
        help="price of a device for an hour; without it no cost is shown",
    )
    parser.add_argument("--efficiency", type=float, help="share of the peak that matrix products reach, in 0..1")
    parser.add_argument(
        "--tf32", action="store_true", help="fp32 products in TF32 (torch.set_float32_matmul_precision)"
    )
    parser.add_argument(
        "--network", type=float, metavar="GB/s", help="rate of a device to other machines, in one direction"
    )
    parser.add_argument("--check", type=int, metavar="N", help="run N steps here, and compare them with the plan")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    options, assignments = parser.parse_known_args(arguments)

    from diptych.apps.plan.cards import find_fleet
    from diptych.recipes.override import override, parse_assignments

    fleet = find_fleet(options.devices)
    _check_ranges(options)
    if options.check is not None and fleet.card is not None:
        raise ValueError("--check runs steps here: use it with --devices this")

    from diptych.apps.plan.check import check
    from diptych.apps.plan.predict import Wish, plan
    from diptych.apps.plan.text import as_json, as_text, checked_as_text
    from diptych.catalog import find_recipe

    recipe = override(find_recipe(options.recipe), parse_assignments(assignments))
    if options.check is not None and recipe.optim.accumulate > 1:
        raise ValueError("--check runs steps in one piece: leave optim.accumulate at 1")
    network = None if options.network is None else options.network * 1e9
    pairs = None if options.pairs is None else int(options.pairs)
    wish = Wish(fleet, options.tokens, pairs, options.efficiency, options.tf32, options.price, network)
    planned = plan(recipe, wish)
    compared = None if options.check is None else check(recipe, wish, planned, options.check)
    if options.json:
        print(json.dumps(as_json(planned, compared), indent=1))
        return
    print(as_text(planned))
    if compared is not None:
        print("", checked_as_text(compared), sep="\n")


def _check_ranges(options: argparse.Namespace) -> None:
    """Raises ValueError for numbers out of range."""
    least = {"--tokens": (options.tokens, 1), "--pairs": (options.pairs, 1), "--check": (options.check, 1)}
    for name, (value, low) in least.items():
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, not {value:g}")
    for name, value in {"--price": options.price, "--network": options.network}.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, not {value:g}")
    if options.efficiency is not None and not 0 < options.efficiency <= 1:
        raise ValueError(f"--efficiency is a share, above 0 and at most 1, not {options.efficiency:g}")
