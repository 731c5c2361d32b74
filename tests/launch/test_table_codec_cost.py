"""The table of coding costs: mistakes come first, and payloads are real."""

import pytest
import table_codec_cost


@pytest.mark.parametrize(
    "arguments, file, message",
    [
        (["--repeats=0"], "", "--repeats=0: must be at least 1"),
        (["--device=???"], "", "needs a letter or digit"),
        ([], "[1]", "other.json is not what this script writes"),
        ([], "{", "other.json is not what this script writes"),
    ],
)
def test_codec_cost_tells_mistakes_before_it_measures(
    tmp_path, monkeypatch, capsys, arguments, file, message
):
    monkeypatch.setattr(table_codec_cost, "measure", lambda *_: pytest.fail("measured"))
    if file:
        (tmp_path / "other.json").write_text(file)
    with pytest.raises(SystemExit) as stopped:
        table_codec_cost.main(["--smoke", f"--out={tmp_path}", *arguments])
    assert message in capsys.readouterr().err + str(stopped.value)
    assert len(list(tmp_path.iterdir())) == bool(file)


def test_codec_cost_measures_real_payloads():
    rows = table_codec_cost.measure(60_000, repeats=1)
    for row in rows.values():
        assert 0.005 < row["flip_rate"] < 0.02 and 0.02 < row["bpp"] < 0.3 and row["encode_seconds"] > 0
    text = table_codec_cost.table([{"device": "x", "networks": {"tiny": rows}}])
    assert text.count("\n| tiny |") == len(rows)


def test_networks_that_only_some_devices_measured_are_in_the_table():
    cost = {"bpp": 0.1, "encode_seconds": 1.0, "decode_seconds": 2.0}
    small, large = ({"device": name, "networks": {name: {"rice": cost}}} for name in "ab")
    text = table_codec_cost.table([small, large])
    assert "| a | rice | 0.1000 | 1.000 / 2.000 | – |" in text
    assert "| b | rice | 0.1000 | – | 1.000 / 2.000 |" in text


def test_a_smoke_test_leaves_the_measurement_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table_codec_cost, "measure", lambda *_: {})
    table_codec_cost.main(["--smoke"])
    assert [path.name for path in tmp_path.glob("runs/*")] == ["codec_cost-smoke"]
