"""The benchmark of an iteration, in its smallest shape and without the peer."""

import json

import pytest


def test_the_table_comes_out_without_the_peer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RARLHF_CACHE", str(tmp_path))
    from benchmarks.iteration import PEER_MISSING, QUICK, SHAPES, main

    main(["--quick", "--threads", "1", "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert PEER_MISSING in printed and printed == (tmp_path / "out.md").read_text()
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert f"| {SHAPES['tiny']} | {QUICK.name} |" in printed

    (seconds,) = row["seconds"]
    assert 0 < seconds["generate"] + seconds["update"] < seconds["whole"]
    assert 0 < row["bytes"]["above"] < row["bytes"]["whole"]
    # of ten episodes at alpha = 0.2 two are kept; 12 width² weights a layer, each with a product forward and two back
    dense = 4 * 3 * 2 * (2 * 8 * 12 * 2 * 64**2)
    assert row["flops"]["update"] == pytest.approx(dense, rel=0.15) and row["flops"]["whole"] > row["flops"]["update"]


def test_a_wrong_number_of_threads_or_repeats_is_refused(capsys):
    from benchmarks.iteration import main

    for words in (["--threads", "0"], ["--threads", "100000"], ["--repeats", "0"]):
        with pytest.raises(SystemExit):
            main(words)
        assert f"argument {words[0]}" in capsys.readouterr().err
