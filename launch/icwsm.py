"""The sentiment sets of ICWSM-14, tweets and product reviews, as tables for `csv:` data.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python launch/icwsm.py vaderSentiment-3.3.2.tar.gz texts     # writes texts/tweets.csv, texts/reviews.csv

The source package of vaderSentiment carries both sets (Hutto and Gilbert, ICWSM 2014; MIT licence): one text
per line with the mean valence that people gave it, from −4 to 4. A text is `positive` above zero and
`negative` below; the few at exactly zero are left out. The reviews' `user` is the review that a sentence was
taken from. The sets have no test split, so a fifth of every class is the test (docs/data.md).
"""

import csv
import io
import sys
import tarfile
from pathlib import Path

MEMBER = "additional_resources/hutto_ICWSM_2014.tar.gz"
SETS = {"tweets": "tweets_GroundTruth.txt", "reviews": "amazonReviewSnippets_GroundTruth.txt"}


def rows_of(text: str) -> list[dict[str, str]]:
    """Rows `text`, `label`, `user` from lines of an id, a valence and a text, separated by tabs.

    Args:
        text: the lines. An id is a number, or REVIEW_SENTENCE.

    Raises:
        ValueError: a line that is none.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            name, valence, content = line.split("\t", 2)
            mean = float(valence)
        except ValueError:
            raise ValueError(f"line {number} is not an id, a valence and a text: {line[:60]!r}") from None
        if mean:
            label = "positive" if mean > 0 else "negative"
            rows.append({"text": content.strip(), "label": label, "user": name.split("_")[0]})
    return rows


def read(package: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of both sets from vaderSentiment's source package.

    Raises:
        ValueError: it is another file.
    """
    try:
        with tarfile.open(package) as outer:
            inner = next(member for member in outer if member.name.endswith(MEMBER))
            packed = io.BytesIO(outer.extractfile(inner).read())
        with tarfile.open(fileobj=packed) as archive:
            files = {Path(member.name).name: member for member in archive if member.isfile()}
            texts = {name: archive.extractfile(files[file]).read() for name, file in SETS.items()}
    except (OSError, tarfile.TarError, StopIteration, KeyError):
        raise ValueError(
            f"{package} is not vaderSentiment's source package: pip download --no-deps --no-binary :all: "
            "vaderSentiment==3.3.2"
        ) from None
    return {name: rows_of(text.decode("utf-8", errors="replace")) for name, text in texts.items()}


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("usage: python launch/icwsm.py vaderSentiment-3.3.2.tar.gz FOLDER")
    try:
        sets = read(Path(argv[0]))
    except ValueError as error:
        sys.exit(str(error))
    folder = Path(argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)
        positive = sum(row["label"] == "positive" for row in rows)
        print(f"{file.name}: {len(rows):,} texts, {positive:,} of them positive")


if __name__ == "__main__":
    main(sys.argv[1:])
