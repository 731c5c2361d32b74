"""Tables from the sentiment sets: what becomes a row, and what is refused."""

import csv
import io
import tarfile

import icwsm
import pytest

TWEETS = "1\t2.7\tSomehow I was blessed. \r\n2\t-1.5\tnot\ta good day\r\n3\t0.0\tneither\r\n\r\n"
REVIEWS = "".join(f"{review}_{k}\t{0.5 - k}\tsaid, “{review}.{k}”\n" for review in (1, 2) for k in range(2))


def package(path, texts):
    def pack(file, members):
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    inner = io.BytesIO()
    pack(inner, {f"hutto_ICWSM_2014/{name}": text.encode() for name, text in texts.items()})
    with path.open("wb") as file:
        pack(
            file,
            {"vaderSentiment-1/README.rst": b"", f"vaderSentiment-1/{icwsm.MEMBER}": inner.getvalue()},
        )
    return path


def test_both_sets_become_tables(tmp_path, capsys):
    source = package(
        tmp_path / "source.tar.gz", dict(zip(icwsm.SETS.values(), (TWEETS, REVIEWS), strict=True))
    )
    icwsm.main([str(source), str(tmp_path / "texts")])
    assert "tweets.csv: 2 texts, 1 of them positive" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "texts" / "tweets.csv").open(encoding="utf-8")))
    assert rows == [
        {"text": "Somehow I was blessed.", "label": "positive", "user": "1"},
        {"text": "not\ta good day", "label": "negative", "user": "2"},
    ]
    reviews = list(csv.DictReader((tmp_path / "texts" / "reviews.csv").open(encoding="utf-8")))
    assert [(row["user"], row["label"]) for row in reviews] == [
        ("1", "positive"),
        ("1", "negative"),
        ("2", "positive"),
        ("2", "negative"),
    ]
    assert reviews[0]["text"] == "said, “1.0”"


def test_other_files_and_damaged_lines_are_refused_in_a_line(tmp_path):
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"no archive")
    for source in (other, tmp_path / "missing.tar.gz", package(other.with_name("less.tar.gz"), {})):
        with pytest.raises(SystemExit, match="not vaderSentiment's source package: pip download"):
            icwsm.main([str(source), str(tmp_path / "texts")])
    assert not (tmp_path / "texts").exists()
    with pytest.raises(ValueError, match="line 2 is not an id, a valence and a text"):
        icwsm.rows_of("1\t1.0\tfine\n2\tgood\ttext\n")
    with pytest.raises(SystemExit, match="usage"):
        icwsm.main([])
