"""Search your own photographs with a trained run.

python examples/search_photos.py runs/demo photos "a dog on grass" "two boats"
"""

import argparse
from pathlib import Path

import diptych
from diptych.predict import search_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("photos", type=Path, help="the folder to search, with those in it")
    parser.add_argument("queries", nargs="+", metavar="query")
    options = parser.parse_args()

    model = diptych.load(options.run)
    for query in options.queries:
        print(search_folder(model, query, options.photos, k=5), end="\n\n")


if __name__ == "__main__":
    main()
