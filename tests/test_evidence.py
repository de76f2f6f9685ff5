"""Results: measured where the prices are, as recorded elsewhere, missing where there is neither; and their pictures."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from mlbook import claims
from mlbook.leveraged_etfs.drawing import heat, maps
from mlbook.leveraged_etfs.evidence import Evidence
from mlbook.leveraged_etfs.prices import Unfit

PRICES = {"AAA": pd.DataFrame(), "BBB": pd.DataFrame()}
TABLE = pd.DataFrame({"1": [1 / 3, 2.0], "two": [np.nan, -1e5 / 7]}, ["1999–2018", "x"])


def recorded(**tables):
    """A record with these tables, as the benchmark leaves it: through a file of JSON."""
    maker = Evidence({})
    for name, table in tables.items():
        maker.table(name, (), lambda table=table: table)
    record = {"device": "some CPU", "date": "2026-01-02", "tables": maker.measured}
    return json.loads(json.dumps(record))


def never():
    raise AssertionError("nothing may be measured here")


# --- Tables --------------------------------------------------------------------------------------


def test_a_table_is_measured_where_all_prices_are():
    other = TABLE * 2
    for tickers in ((), ["AAA"], ["AAA", "BBB"], iter(["BBB", "AAA"])):
        evidence = Evidence(PRICES, recorded(t=other))
        assert evidence.table("t", tickers, lambda: TABLE) is TABLE
        assert list(evidence.measured) == ["t"]
    assert json.loads(evidence.measured["t"])["index"] == ["1999–2018", "x"]


def test_a_table_is_recorded_where_prices_are_missing():
    record = recorded(t=TABLE)
    for prices, tickers in (
        ({}, ["AAA"]),
        (PRICES, ["AAA", "CCC"]),
        (PRICES, iter(["CCC"])),
    ):
        evidence = Evidence(prices, record)
        got = evidence.table("t", tickers, never)
        pd.testing.assert_frame_equal(got, TABLE, rtol=1e-14)
        assert evidence.measured == {}, "a record is not measured again"


def test_without_a_measure_only_the_record_is_asked():
    got = Evidence(PRICES, recorded(site=TABLE)).table("site")
    pd.testing.assert_frame_equal(got, TABLE, rtol=1e-14)
    assert Evidence(PRICES, recorded(site=TABLE)).table("other") is None
    assert Evidence(PRICES).table("site") is None


@pytest.mark.parametrize("record", [None, {}, {"device": "d", "date": "d"}])
def test_a_table_is_missing_where_there_is_neither(record):
    evidence = Evidence(PRICES, record)
    assert evidence.table("t", ["CCC"], never) is None
    assert evidence.measured == {} and evidence.recorded == {}
    pd.testing.assert_frame_equal(evidence.table("t", ["AAA"], lambda: TABLE), TABLE)


def test_a_name_stands_for_one_table():
    evidence = Evidence(PRICES)
    evidence.table("t", ["AAA"], lambda: TABLE)
    with pytest.raises(ValueError, match="there is a table 't' already"):
        evidence.table("t", ["AAA"], never)
    with pytest.raises(ValueError, match="there is a table 't' already"):
        evidence.table("t")
    assert evidence.table("other", ["AAA"], lambda: TABLE) is TABLE


def test_a_measure_that_fails_leaves_nothing():
    evidence = Evidence(PRICES, recorded(t=TABLE))
    with pytest.raises(AssertionError, match="nothing may be measured"):
        evidence.table("t", ["AAA"], never)
    assert evidence.measured == {}


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0, 1e6, 1e12])
def test_a_record_keeps_numbers_to_twelve_digits(size):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(0, size, (7, 5)), list("abcdefg"), list("vwxyz"))
    got = Evidence({}, recorded(t=table)).table("t")
    pd.testing.assert_frame_equal(got, table, rtol=1e-12, atol=1e-12)
    assert list(got.columns) == list("vwxyz") and list(got.index) == list("abcdefg")


@pytest.mark.parametrize(
    "labels",
    [
        ["1", "2", "12"],
        ["2010", "2013", "2015"],
        ["2010-02-11", "2013-01-01", "2015-04-01"],
        ["007", "1e5", "0.5"],
        ["1999–2018", "E  … and UPRO’s", "today’s open"],
        ["date", "modified", "x_at"],
        ["true", "null", ""],
        ["TQQQ 40%", "^IXIC", 'C/D \\ "'],
    ],
)
def test_a_record_keeps_labels_that_are_strings(labels):
    table = pd.DataFrame(np.arange(9.0).reshape(3, 3), labels, labels)
    got = Evidence({}, recorded(t=table)).table("t")
    assert list(got.index) == list(got.columns) == labels
    assert all(isinstance(label, str) for label in [*got.index, *got.columns])
    np.testing.assert_array_equal(got, table)


def test_a_record_keeps_the_numbers_of_rows_and_shares():
    """Labels that are numbers stay numbers, in their order."""
    table = pd.DataFrame({0.7: [1.5], 0.0: [2.5], 1.0: [0.25]})
    got = Evidence({}, recorded(t=table)).table("t")
    assert list(got.columns) == [0.7, 0.0, 1.0] and list(got.index) == [0]
    assert got.loc[0, 0.7] == 1.5


def test_a_record_keeps_what_is_missing_and_what_is_whole():
    table = pd.DataFrame(
        {
            "none": [np.nan] * 2,
            "some": [np.nan, 1.5],
            "count": [3, 4],
            "yes": [True, False],
        },
        ["x", "y"],
    )
    got = Evidence({}, recorded(t=table)).table("t")
    assert got.isna().to_numpy().tolist() == table.isna().to_numpy().tolist()
    assert np.isnan(got["none"].to_numpy(float)).all()
    assert got["count"].tolist() == [3, 4]
    assert got["yes"].dtype == bool and got["yes"].tolist() == [True, False]
    assert (got > 1).to_numpy().tolist() == (table > 1).to_numpy().tolist()


def too_short():
    raise Unfit("AAA does not reach from 2010-02-11 to 2024-07-09")


def test_a_table_that_cannot_be_measured_is_that_of_the_record(capsys):
    evidence = Evidence(PRICES, recorded(t=TABLE))
    got = evidence.table("t", ["AAA"], too_short)
    pd.testing.assert_frame_equal(got, TABLE, rtol=1e-14)
    assert evidence.measured == {}, "it is not recorded again"
    assert capsys.readouterr().out == (
        "t is not measured: AAA does not reach from 2010-02-11 to 2024-07-09\n"
    )
    assert evidence.table("t", ["AAA"], lambda: TABLE * 2).equals(TABLE * 2)
    assert capsys.readouterr().out == "" and list(evidence.measured) == ["t"]


def test_a_table_that_cannot_be_measured_is_missing_without_a_record(capsys):
    for record in (None, recorded(other=TABLE)):
        evidence = Evidence(PRICES, record)
        assert evidence.table("t", ["AAA"], too_short) is None
        assert evidence.measured == {}
        assert capsys.readouterr().out.startswith("t is not measured: AAA does not")
    assert evidence.table("t", ["CCC"], never) is None
    assert capsys.readouterr().out == "", "of prices that are missing others tell"


@pytest.mark.parametrize("error", [KeyError, ValueError, ZeroDivisionError, OSError])
def test_a_mistake_in_measuring_is_no_missing_price(error):
    def wrong():
        raise error("a mistake")

    evidence = Evidence(PRICES, recorded(t=TABLE))
    with pytest.raises(error):
        evidence.table("t", ["AAA"], wrong)
    assert evidence.measured == {}


def test_a_name_that_stands_twice_is_no_missing_price():
    evidence = Evidence(PRICES, recorded(t=TABLE))
    evidence.table("t", ["AAA"], lambda: TABLE)
    with pytest.raises(ValueError, match="there is a table 't' already"):
        evidence.table("t", ["AAA"], too_short)


# --- Claims --------------------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch):
    """What claims display, as a list of their records."""
    shown = []
    monkeypatch.setattr(
        claims, "display", lambda bundle, raw: shown.append(bundle[claims.MIME])
    )
    return shown


def test_a_claim_is_of_here_where_its_table_is(displayed, capsys):
    evidence = Evidence(PRICES, recorded(t=TABLE * 2))
    table = evidence.table("t", ["AAA"], lambda: TABLE)
    evidence.claim(
        "t", "etf.one", "It is", lambda: table.loc["x", "1"], below=2.5, source="s"
    )
    (record,) = displayed
    assert record["place"] == "here" and record["measured"] == 2.0
    assert (record["id"], record["statement"]) == ("etf.one", "It is")
    assert record["verdict"] == "confirmed" and record["source"] == "s"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verdict", claims.VERDICTS)
def test_a_claim_from_the_record_says_so_and_keeps_its_verdict(displayed, verdict):
    evidence = Evidence({}, recorded(t=TABLE))
    table = evidence.table("t", ["AAA"], never)
    evidence.claim(
        "t",
        "etf.one",
        "It is",
        lambda: table.loc["x", "1"],
        above=1.5,
        verdict=verdict,
        at_smoke=False,
    )
    (record,) = displayed
    assert record["place"] == "recorded on some CPU, 2026-01-02"
    assert record["verdict"] == verdict and record["measured"] == 2.0
    assert record["asserted"], "a record holds at every scale"


def test_a_claim_that_does_not_hold_fails_here_and_from_the_record(displayed):
    for prices in (PRICES, {}):
        evidence = Evidence(prices, recorded(t=TABLE))
        evidence.table("t", ["AAA"], lambda: TABLE)
        with pytest.raises(claims.ClaimFailed, match="etf.one"):
            evidence.claim("t", "etf.one", "It is", lambda: 2.0, above=2.5)
    assert [r["verdict"] for r in displayed] == ["failed", "failed"]
    assert [r["place"] for r in displayed] == [
        "here",
        "recorded on some CPU, 2026-01-02",
    ]


def test_a_claim_without_its_table_is_left_out_with_a_line(displayed, capsys):
    evidence = Evidence(PRICES, recorded(other=TABLE))
    assert evidence.table("t", ["CCC"], never) is None
    evidence.claim("t", "etf.one", "It is", never, above=2.5, verdict="refuted")
    assert displayed == []
    assert capsys.readouterr().out == "etf.one needs real prices\n"


@pytest.mark.parametrize("form", [list, tuple, set, iter])
@pytest.mark.parametrize(
    ("names", "place"),
    [
        (["m"], "here"),
        (["m", "n"], "here"),
        (["r"], "recorded on some CPU, 2026-01-02"),
        (["r", "s"], "recorded on some CPU, 2026-01-02"),
        (["m", "r"], "recorded on some CPU, 2026-01-02"),
        (["r", "n", "m"], "recorded on some CPU, 2026-01-02"),
        (["m", "none"], None),
        (["r", "none"], None),
        (["none", "m", "r"], None),
    ],
)
def test_a_claim_of_several_tables_is_of_the_record_if_one_is(
    displayed, capsys, form, names, place
):
    evidence = Evidence(PRICES, recorded(m=TABLE, r=TABLE, s=TABLE))
    for name in "mn":
        evidence.table(name, ["AAA"], lambda: TABLE)
    for name in "rs":
        evidence.table(name, ["CCC"], never)
    assert evidence.table("none", ["CCC"], never) is None
    value = (lambda: 2.0) if place else never
    evidence.claim(form(names), "etf.one", "It is", value, above=1.5)
    assert [r["place"] for r in displayed] == ([place] if place else [])
    told = "" if place else "etf.one needs real prices\n"
    assert capsys.readouterr().out == told


def test_the_name_of_a_table_is_not_taken_by_its_letters(displayed):
    evidence = Evidence(PRICES, recorded(t=TABLE))
    evidence.table("a", ["AAA"], lambda: TABLE)
    evidence.table("b", ["AAA"], lambda: TABLE)
    with pytest.raises(ValueError, match="no table was asked for by {'ab'}"):
        evidence.claim("ab", "etf.one", "It is", never, above=1.5)
    assert displayed == []


def test_a_claim_of_a_table_that_could_not_be_measured_is_recorded(displayed, capsys):
    evidence = Evidence(PRICES, recorded(t=TABLE))
    table = evidence.table("t", ["AAA"], too_short)
    evidence.claim("t", "etf.one", "It is", lambda: table.loc["x", "1"], above=1.5)
    assert displayed[0]["place"] == "recorded on some CPU, 2026-01-02"
    assert "is not measured" in capsys.readouterr().out


# --- Pictures ------------------------------------------------------------------------------------


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def grid(values, rows="ab", columns="xyz"):
    return pd.DataFrame(values, list(rows), list(columns))


WAYS = [
    (dict(low=1 / 3, high=3, even=1), [[0.5, 1.0, 2.0], [np.nan, 1e-4, 40.0]]),
    (dict(low=-50, high=20, even=0), [[-60.0, 0.0, 10.0], [np.nan, -1.0, 99.0]]),
    (dict(low=40, high=75), [[0.0, 50.0, 60.0], [np.nan, 41.0, 99.0]]),
    (dict(low=0, high=1, even=0.5), [[0.0, 0.5, 1.0], [np.nan, 0.25, 2.0]]),
]


@pytest.mark.parametrize(("how", "values"), WAYS)
def test_a_table_is_drawn_with_its_numbers_and_labels(ax, how, values):
    image = heat(ax, grid(values), **how, form="{:.1f}")
    ax.figure.canvas.draw()
    told = {t.get_position(): t.get_text() for t in ax.texts}
    expected = {
        (j, i): f"{v:.1f}"
        for (i, j), v in np.ndenumerate(np.array(values))
        if np.isfinite(v)
    }
    assert told == expected and len(told) == 5, "none where nothing is known"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y", "z"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert image.get_clim() == (how["low"], how["high"])
    ax.figure.colorbar(image)
    ax.figure.canvas.draw()


@pytest.mark.parametrize("even", [None, 0, 1])
def test_a_table_of_which_nothing_is_known_is_drawn(ax, even):
    low = 0.5 if even == 1 else -1
    heat(ax, grid(np.full((2, 3), np.nan)), low, 2, even=even)
    ax.figure.canvas.draw()
    assert len(ax.texts) == 0


def colours(image, *values):
    return [image.cmap(image.norm(v))[:3] for v in values]


@pytest.mark.parametrize(
    ("how", "red", "even", "blue"),
    [
        (dict(low=1 / 4, high=4, even=1), 0.5, 1.0, 2.0),
        (dict(low=-50, high=20, even=0), -25.0, 0.0, 10.0),
    ],
)
def test_colours_say_which_side_is_ahead(ax, how, red, even, blue):
    image = heat(ax, grid([[red, even, blue]], "a"), **how)
    below, middle, above = colours(image, red, even, blue)
    assert min(middle) > 0.95, "white"
    assert below[0] > below[2] + 0.2 and above[2] > above[0] + 0.2
    # a half is as far from one as two is, and a half of a span as the other
    assert float(image.norm(red)) + float(image.norm(blue)) == pytest.approx(1)


def light(colour):
    return float(np.dot(to_rgb(colour), [0.3, 0.6, 0.1]))


@pytest.mark.parametrize(("how", "values"), WAYS)
def test_numbers_can_be_read_on_their_colours(ax, how, values):
    image = heat(ax, grid(values), **how)
    for text in ax.texts:
        j, i = text.get_position()
        ground = image.cmap(image.norm(values[i][j]))
        assert abs(light(text.get_color()) - light(ground[:3])) > 0.35


def test_a_factor_of_nothing_can_be_read(ax):
    """Where everything was lost: it has no logarithm, and no colour unless it is given one."""
    image = heat(ax, grid([[0.0, 1.0, 2.0]], "a"), 1 / 3, 3, even=1)
    ax.figure.canvas.draw()
    red, green, blue, there = image.to_rgba(image.get_array())[0, 0]
    ground = there * np.array([red, green, blue]) + (1 - there)  # on a white page
    (text,) = (t for t in ax.texts if t.get_text() == "0.00")
    assert abs(light(text.get_color()) - light(ground)) > 0.35


@pytest.mark.parametrize(("how", "values"), WAYS)
def test_maps_are_drawn_one_a_table(how, values):
    tables = {name: grid(values) for name in ("one", "two", "three", "four")}
    for some, across, shape in (
        ({"": tables["one"]}, 1, (1, 1)),
        (tables, 1, (4, 1)),
        (tables, 2, (2, 2)),
        (dict(list(tables.items())[:2]), 2, (1, 2)),
    ):
        fig = maps(some, **how, across=across, below="month")
        fig.canvas.draw()
        assert [ax.get_title() for ax in fig.axes] == list(some)
        assert fig.axes[0].get_subplotspec().get_gridspec().get_geometry() == shape
        assert fig.get_supxlabel() == "month"
        assert all(len(ax.texts) == 5 for ax in fig.axes)
        plt.close(fig)


def test_maps_take_colours_in_order():
    fig = maps({"": grid([[1.0, 2.0, 3.0]], "a")}, -8, 8, even=0, form="{:.0f}")
    (ax,) = fig.axes
    assert ax.images[0].get_clim() == (-8, 8)
    assert [t.get_text() for t in ax.texts] == ["1", "2", "3"]
    plt.close(fig)


def test_a_recorded_table_is_drawn_as_a_measured_one(ax):
    table = grid([[0.5, 1.0, np.nan], [2.0, 3.0, 4.0]])
    heat(ax, Evidence({}, recorded(t=table)).table("t"), 1 / 3, 3, even=1)
    again = [t.get_text() for t in ax.texts]
    assert again == ["0.50", "1.00", "2.00", "3.00", "4.00"]


def test_even_is_white_whatever_the_ends(ax):
    for low, high in ((0.25, 2), (0.5, 4), (1 / 3, 3)):
        image = heat(ax, grid([[0.5, 1.0, 2.0]], "a"), low, high, even=1)
        assert image.norm(1.0) == pytest.approx(0.5)


def test_maps_of_other_rows_are_refused_and_odd_numbers_fit():
    with pytest.raises(ValueError, match="the tables have other rows"):
        maps({"a": grid([[1.0] * 3] * 2), "b": grid([[1.0] * 3] * 2, "bc")}, 0, 1)
    fig = maps({name: grid([[1.0] * 3] * 2) for name in "abc"}, 0, 1, across=2)
    assert [ax.axison for ax in fig.axes[:4]] == [True, True, True, False]
    plt.close(fig)
