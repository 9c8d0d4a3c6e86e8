"""The pure parts of the benchmarks: counting in a byte stream, tables, bars, the drawing."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report
from benchmarks.bars import BARS, CONTROLS, OWN, Bar, Demand
from benchmarks.client import MARK, Marks, Tally
from benchmarks.http_links import END_OF_TURN, Chunked
from benchmarks.judge import Verdict, bar_table, judge
from benchmarks.measures import MEASURES
from benchmarks.peers import PEERS
from benchmarks.plot import Row, rows, svg
from benchmarks.report import Results

ANSWER = b"answer-0000001"


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 10_000), max_size=40)


@given(st.integers(0, 9), st.integers(0, 9), CUTS)
def test_a_tally_counts_wherever_the_pieces_are_cut(early: int, late: int, cuts: list[int]) -> None:
    data = b"text" + MARK * early + ANSWER + (MARK + b"<end-of") * late
    tally, marks, byte = Tally(ANSWER), Marks(), Marks(MARK[-1:])
    for piece in _pieces(data, cuts):
        for each in (tally, marks, byte):
            each.feed(piece)
    assert tally.answered and tally.late == late
    assert tally.chunks == marks.chunks == byte.chunks == early + late


def test_what_ends_a_turn_fits_the_seam_of_a_tally() -> None:
    assert len(END_OF_TURN) <= len(MARK)
    with pytest.raises(AssertionError):
        Tally(b"x" * (len(MARK) + 1))


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), CUTS)
def test_the_framing_of_chunks_comes_off_wherever_the_pieces_are_cut(
    contents: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents)
    chunked = Chunked()
    found = [chunked.feed(piece) for piece in _pieces(data + b"0\r\n\r\n", cuts)]
    assert b"".join(found) == b"".join(contents)


def _results(own: list[float | None], other: list[float | None]) -> Results:
    def rounds(values: list[float | None]) -> list[dict[str, float]]:
        return [{} if value is None else {"chunks/s": value} for value in values]

    return {OWN: {"burst": rounds(own)}, "qwen": {"burst": rounds(other)}}


EIGHT = Bar(1, "relay", (Demand("burst", "chunks/s", 8, over="qwen"),))
SMALL = Bar(2, "cost", (Demand("burst", "chunks/s", at_most=2),))


@pytest.mark.parametrize(
    ("own", "ok"),
    [
        ([80, 90, 64], True),  # the worst round is just within 0.8 of the bar
        ([80, 90, 63], False),
        ([79, 79, 90], False),  # the median is not reached
    ],
)
def test_a_bar_is_for_the_median_and_loosely_for_the_worst_round(
    own: list[float | None], ok: bool
) -> None:
    assert judge(EIGHT, _results(own, [10, 10, 10])).ok is ok


def test_ratios_are_of_the_same_round() -> None:
    verdict = judge(EIGHT, _results([80, 900, 160], [10, None, 20]))
    assert verdict.figures == [8, 8] and verdict.ok


def test_a_round_in_which_the_own_measurement_failed_counts() -> None:
    verdict = judge(EIGHT, _results([80, None, 80], [10, 10, 10]))
    assert not verdict.ok
    assert "FAILED in 1" in bar_table([verdict])


def test_at_most_is_the_other_way_round() -> None:
    assert judge(SMALL, _results([2, 2, 2.5], [])).ok
    assert not judge(SMALL, _results([2, 2, 2.6], [])).ok
    assert not judge(SMALL, _results([2.1, 2.1, 1], [])).ok


def test_none_at_all_means_none() -> None:
    none = Bar(1, "lost", (Demand("burst", "chunks/s", at_most=0),))
    assert judge(none, _results([0, 0], [])).ok
    assert not judge(none, _results([0, 0, 0, 1], [])).ok


def test_of_alternatives_the_loosest_counts() -> None:
    within = Demand("burst", "chunks/s", at_most=0.7, less="qwen")
    either = Bar(3, "first", (Demand("burst", "chunks/s", at_most=0.6, over="qwen"), within))
    verdict = judge(either, _results([0.6], [0.1]))
    assert verdict.ok and verdict.demand is within
    assert not judge(either, _results([2], [1])).ok


def test_what_was_not_measured_is_not_reached() -> None:
    verdict = judge(EIGHT, {})
    assert not verdict.ok and "not measured" in bar_table([verdict])


def test_every_bar_names_measurements_and_peers_that_there_are() -> None:
    pairs = CONTROLS | {pair for bar in BARS for demand in bar.any_of for pair in demand.needs()}
    for peer, measure in pairs:
        assert measure in MEASURES and PEERS[peer].takes(measure), (peer, measure)
    for bar in BARS:
        for demand in bar.any_of:
            assert (demand.at_least is None) is not (demand.at_most is None), bar
            assert not (demand.over and demand.less), bar


def test_tables_show_medians_and_the_worst_round() -> None:
    results = _results([80, None, 100, 60], [10, 10, 10, 20])
    results["stdio"] = {"turn": [{"end p50 ms": 1.0}]}
    results[OWN]["turn"] = [{"end p50 ms": 1.5}]
    first, second = report.table(results).split("\n\n")
    assert "| burst: chunks/s | 80 (60) | 10 |" in first
    assert "| turn: end p50 ms | 1.5 | 1 |" in second
    beside = report.beside_peers(results)
    assert "| burst: chunks/s | 8 (3) |  |" in beside
    assert "| turn: end p50 ms |  | +0.5 ms |" in beside
    assert report.beside_peers({OWN: results[OWN]}) == ""


def test_the_drawing_has_a_bar_for_each_ratio_and_grows_with_what_is_better() -> None:
    cheap = Bar(1, "CPU <us>", (Demand("burst", "chunks/s", at_most=0.5, over="qwen"),))
    verdicts = [judge(bar, _results([100, 50], [10, 10])) for bar in (EIGHT, cheap, SMALL)]
    found = rows(verdicts)
    assert [row.label for row in found] == ["relay", "CPU <us>"]  # what is no ratio is left out
    assert (found[0].median, found[0].worst, found[0].demanded) == (7.5, 5, 8)
    assert found[1].demanded == 2 and found[1].worst == pytest.approx(0.1)
    space = "{http://www.w3.org/2000/svg}"
    drawing = ElementTree.fromstring(svg(found, "1 < 2"))
    bars = [each for each in drawing.iter(f"{space}rect") if each.get("class") != "paper"]
    texts = [each.text or "" for each in drawing.iter(f"{space}text")]
    assert len(bars) == 2 and "CPU <us>" in texts and "7.5 × qwen" in texts and "1 < 2" in texts
    longer = svg([Row("a", "qwen", 4, 4, 2), Row("b", "qwen", 16, 16, 2)])
    widths = [
        float(each.get("width", ""))
        for each in ElementTree.fromstring(longer).iter(f"{space}rect")
        if each.get("class") != "paper"
    ]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)  # the scale is logarithmic
    with pytest.raises(ValueError, match="another peer"):
        svg(rows([Verdict(EIGHT, EIGHT.any_of[0], [])]))
