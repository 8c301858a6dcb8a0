"""Trains a model on your own images with captions, then finds the images by words.

python examples/own_pairs.py photos --to runs/photos --queries "a dog on grass" "two boats"

The folder `photos` holds images, each beside a text file of the same name with its caption, or one `captions.jsonl`
(docs/training.md). The tiny model trains from scratch in minutes on a CPU, and needs thousands of pairs whose words
repeat. For real photographs use `--recipe albef_small` and a GPU, or start from a trained run (`init_from=RUN`). Fields
of the recipe come before the queries: `photos run.steps=5000 run.batch_size=32 --queries …`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from diptych.apps.report.run import report
from diptych.catalog import find_recipe
from diptych.predict import load, search_folder
from diptych.recipes.override import override, parse_assignments
from diptych.run import train


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="the folder of pictures and captions")
    parser.add_argument("--to", type=Path, default=Path("runs/own-pairs"), help="a new run folder")
    parser.add_argument("--recipe", default="albef_tiny", help="see `diptych recipes`")
    parser.add_argument("--queries", nargs="*", default=[], metavar="QUERY", help="what to look for afterwards")
    options, changes = parser.parse_known_args(arguments)

    recipe = find_recipe(options.recipe)
    data = replace(recipe.data, source="folder", path=str(options.pairs), held_out=0.1, crop=(0.5, 1.0), flip=0.5)
    recipe = override(replace(recipe, data=data), parse_assignments(changes))

    run = train(recipe, options.to)  # on part of the pairs; checkpoints, curves and recipe stand in the folder
    page = report(run)  # measured on pairs that training never saw
    print(f"measured: {run / 'eval.json'}; curves and examples: {page}")

    model = load(run)
    for query in options.queries:
        print(search_folder(model, query, options.pairs, k=5), end="\n\n")


if __name__ == "__main__":
    main()
