"""Readers: small files in each publisher's own format, with the odd things that the real ones hold."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4dsr.data.sources import Source, from_frames, lines, read_source, source
from llm4dsr.data.sources.lines import literal
from llm4dsr.errors import DataError


def write(path: Path, text: str | bytes) -> Path:
    """As text, or gzipped where the name says so."""
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_lines(*records: object) -> str:
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


def rows(found: Source) -> list[tuple]:
    return [row for batch in found.batches() for row in batch.rows()]


def titles(found: Source) -> dict:
    return dict(found.items.rows())


# --- Amazon ----------------------------------------------------------------------------------------------------------


def review(user: str, item: str, stars: float, seconds: int) -> dict:
    return {
        "reviewerID": user, "asin": item, "reviewerName": "J. \"Mac\" McDonald", "helpful": [2, 3],
        "reviewText": "Très bien,\nreally {good}", "overall": stars, "summary": "Heavenly",
        "unixReviewTime": seconds, "reviewTime": "09 13, 2009",
    }  # fmt: skip


META_2014 = r"""
{'asin': '0000031852', 'categories': [['Toys & Games', 'Dress Up']], 'title': "Girls' Ballet Tutu, 12&quot;", 'price': 3.17}
{'asin': '0000031853', 'related': {'also_bought': ['0000031852', '0000031854']}, 'title': 'It\'s a \\ puzzle', 'salesRank': {'Toys & Games': 211836}}
{'asin': '0000031854', 'imUrl': 'http://ecx.images-amazon.com/images/I/51fAmVkTbyL.jpg', 'description': "no title: 'title': 'x'"}
{'asin': '0000031852', 'title': 'The same item again'}
{'asin': '0000031855', 'title': 'Cut off
""".lstrip()  # noqa: E501


def test_amazon_2014(tmp_path):
    write(tmp_path / "reviews_Toys_and_Games_5.json.gz", as_lines(review("A1", "0000031852", 5.0, 1252800000),
          '{"reviewerID": "A1", "asin": "00000', review("A2", "0000031853", 4.0, 1252900000),
          {"reviewerID": "A3", "overall": 1.0, "unixReviewTime": 1252900000}))  # fmt: skip
    write(tmp_path / "meta_Toys_and_Games.json.gz", META_2014)
    found = read_source(tmp_path)
    assert found.name == "amazon-2014"
    assert titles(found) == {"0000031852": "Girls' Ballet Tutu, 12&quot;", "0000031853": "It's a \\ puzzle"}
    assert found.dropped_items == {"bad_line": 1, "no_title": 1, "repeated_item": 1}
    assert rows(found) == [("A1", "0000031852", 1252800000, 5.0), ("A2", "0000031853", 1252900000, 4.0)]
    assert found.dropped == {"bad_line": 1, "missing_value": 1}
    assert found.examples["bad_line"] == ["reviews_Toys_and_Games_5.json.gz, line 2"]
    assert rows(found) == rows(found)  # a second pass counts anew
    assert found.dropped == {"bad_line": 1, "missing_value": 1}


def test_amazon_2018(tmp_path):
    write(
        tmp_path / "All_Beauty.json.gz",
        as_lines({**review("A1", "B1", 2.0, 1530000000), "vote": "5", "verified": True}),
    )
    write(tmp_path / "meta_All_Beauty.json.gz", as_lines(
        {"asin": "B1", "title": "Shea &amp; Co <span class=\"x\">Cr\u00e8me</span>", "price": "", "also_buy": []},
        {"asin": "B2", "title": "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0"},
        {"asin": "B3", "title": "  "}, {"asin": "B1", "title": "again"}))  # fmt: skip
    found = read_source(tmp_path)
    assert found.name == "amazon-2018"
    assert titles(found) == {"B1": 'Shea &amp; Co <span class="x">Crème</span>'}
    assert found.dropped_items == {"no_title": 2, "repeated_item": 1}
    assert rows(found) == [("A1", "B1", 1530000000, 2.0)]


@pytest.mark.parametrize(
    "bad",
    ["", "[1]", "null", '{"asin": "B1"', '{"asin": "B1"} {}', '{"unixReviewTime": "1530000000", "asin": "B1"}',
     '{"unixReviewTime": 99999999999999999999, "asin": "B1"}', '{"overall": NaN, "asin": "B1"}', "[" * 3000],
)  # fmt: skip
def test_a_bad_line_costs_nothing_but_itself(tmp_path, bad):
    log = [review(f"A{i}", "B1", 5.0, i) for i in range(150)]
    write(tmp_path / "X.json.gz", as_lines(*log[:120], bad, *log[120:]))
    write(tmp_path / "meta_X.json.gz", as_lines({"asin": "B1", "title": "One"}))
    found = read_source(tmp_path)
    assert [user for user, *_ in rows(found)] == [f"A{i}" for i in range(150)]
    assert found.examples == ({"bad_line": ["X.json.gz, line 121"]} if bad else {})


def test_amazon_2023(tmp_path):
    write(tmp_path / "All_Beauty.jsonl.gz", as_lines({
        "rating": 5.0, "title": "Such a lovely scent", "text": "but not overpowering", "images": [],
        "asin": "B00YQ6X8EO", "parent_asin": "B00YQ6X8E0", "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True}))  # fmt: skip
    write(tmp_path / "meta_All_Beauty.jsonl.gz", as_lines(
        {"main_category": "All Beauty", "title": "Howard LC0008, 16\"", "parent_asin": "B00YQ6X8E0", "price": None},
        {"main_category": "All Beauty", "title": None, "parent_asin": "B2"}))  # fmt: skip
    found = read_source(tmp_path)
    assert found.name == "amazon-2023"
    assert titles(found) == {"B00YQ6X8E0": 'Howard LC0008, 16"'}
    assert rows(found) == [("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8E0", 1588687728, 5.0)]


def test_one_of_several_categories_is_chosen_by_its_file(tmp_path):
    for name in ("Toys", "Books"):
        write(tmp_path / f"{name}_5.json.gz", as_lines(review("A1", f"in {name}", 5.0, 1)))
        write(tmp_path / f"meta_{name}.json.gz", as_lines({"asin": f"in {name}", "title": name}))
    with pytest.raises(DataError, match=r"several data sets: Books_5.json.gz \(amazon-2018\), Toys_5.json.gz"):
        read_source(tmp_path)
    assert titles(read_source(tmp_path / "Toys_5.json.gz")) == {"in Toys": "Toys"}


# --- MovieLens -------------------------------------------------------------------------------------------------------


def test_movielens_100k_is_in_latin_1(tmp_path):
    write(
        tmp_path / "ml-100k" / "u.data",
        "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\tone\t878887116\n1\t2\n",
    )
    write(tmp_path / "ml-100k" / "u.item", (
        "242|Kolya (1996)|24-Jan-1997||http://us.imdb.com/M/title-exact?Kolya%20(1996)|0|0|0\n"
        "302|Misérables, Les (1995)|01-Jan-1995|||0|0|1\n\nno number|x\n").encode("latin-1"))  # fmt: skip
    found = read_source(tmp_path)  # the folder in which the archive was unpacked
    assert titles(found) == {242: "Kolya (1996)", 302: "Misérables, Les (1995)"}
    assert found.dropped_items == {"bad_line": 1}
    assert rows(found) == [(196, 242, 881250949, 3.0), (186, 302, 891717742, 3.0)]
    assert found.dropped == {"bad_line": 2}
    assert found.examples["bad_line"] == ["u.data, line 3", "u.data, line 4"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])  # 1M, and 10M
def test_movielens_1m_and_10m(tmp_path, encoding):
    write(tmp_path / "ratings.dat", "1::1193::5::978300760\r\n1::661::3.5::978302109\r\n::661::3::978302109\r\n")
    write(tmp_path / "movies.dat", (
        "661::Star Wars: Episode IV: A New Hope (1977)::Action|Sci-Fi\n"
        "1193::Cité des enfants perdus, La (1995)::Adventure\n").encode(encoding))  # fmt: skip
    found = read_source(tmp_path)
    assert titles(found) == {
        661: "Star Wars: Episode IV: A New Hope (1977)",
        1193: "Cité des enfants perdus, La (1995)",
    }
    assert rows(found) == [(1, 1193, 978300760, 5.0), (1, 661, 978302109, 3.5)]
    assert found.dropped == {"missing_value": 1}


def test_movielens_csv(tmp_path):
    write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,11,4.0,964982703\n1,3,0.5,964981247\n")
    write(tmp_path / "movies.csv",
          'movieId,title,genres\n11,"American President, The (1995)",Comedy|Drama\n'
          '3,"Unsinkable ""Molly"" Brown, The (1964)",Musical\n4,Amélie (2001),Comedy\n')  # fmt: skip
    found = read_source(tmp_path)
    assert titles(found) == {11: "American President, The (1995)", 3: 'Unsinkable "Molly" Brown, The (1964)',
                             4: "Amélie (2001)"}  # fmt: skip
    assert rows(found) == [(1, 11, 964982703, 4.0), (1, 3, 964981247, 0.5)]


# --- Last.fm, Steam, Yelp, Goodreads ---------------------------------------------------------------------------------


def test_lastfm_1k_counts_an_artist_by_name(tmp_path):
    write(tmp_path / "lastfm-dataset-1K" / "userid-timestamp-artid-artname-traid-traname.tsv",
          'user_000001\t2009-05-04T23:08:57Z\tf1b1cf71-bd35\tDeep Dish\t\tFuck Me "I\'m Famous\n'
          "user_000001\t2009-05-04T13:54:10Z\t\t坂本龍一\t\tComposition 0919\n"
          "user_000002\t2006-08-13T13:59:20Z\t\tDeep Dish\t\tSay\tHello\n"
          "user_000002\tyesterday\t\tDeep Dish\t\tSay Hello\n")  # fmt: skip
    found = read_source(tmp_path)
    assert titles(found) == {"Deep Dish": "Deep Dish", "坂本龍一": "坂本龍一"}
    assert rows(found) == [("user_000001", "Deep Dish", 1241478537), ("user_000001", "坂本龍一", 1241445250)]
    assert found.dropped == {"bad_line": 2}


def test_lastfm_2k_has_times_for_tags_only(tmp_path):
    write(tmp_path / "artists.dat", "id\tname\turl\tpictureURL\r\n1\tMALICE MIZER\thttp://www.last.fm/music/MALICE+MIZER\t"
          "http://x/1.jpg\r\n52\tMötley \"Crüe\"\thttp://www.last.fm/music\r\n")  # fmt: skip
    write(
        tmp_path / "user_taggedartists-timestamps.dat",
        "userID\tartistID\ttagID\ttimestamp\r\n2\t52\t13\t1238536800000\r\n",
    )
    write(tmp_path / "user_artists.dat", "userID\tartistID\tweight\r\n2\t1\t13883\r\n")
    tags = read_source(tmp_path)
    assert tags.name == "lastfm-2k-tags"
    assert titles(tags) == {1: "MALICE MIZER", 52: 'Mötley "Crüe"'}
    assert rows(tags) == [(2, 52, 1238536800)]
    assert rows(read_source(tmp_path, form="lastfm-2k-plays")) == [(2, 1, None)]


def test_steam(tmp_path):
    write(tmp_path / "steam_reviews.json.gz", as_lines(
        "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', u'page_order': 0,"
        " u'date': u'2017-12-17', u'text': u'This isn\\'t {it}, u\\'date\\': u\\'2000-01-01\\'', u'page': 1}",
        "{u'username': u\"it's \\u2605 me\", u'product_id': u'725280', u'date': u'2018-01-04', u'user_id': u'76561'}",
        "{u'username': u'nobody', u'product_id': u'725280', u'date': u'some day'}"))  # fmt: skip
    write(tmp_path / "steam_games.json.gz", as_lines(
        "{u'publisher': u'Kotoshiro', u'genres': [u'Action', u'Casual'], u'app_name': u'Lost Summoner Kitty',"
        " u'title': u'Lost Summoner Kitty', u'price': 4.99, u'early_access': False, u'id': u'761140'}",
        "{u'app_name': u'Only a name', u'id': u'725280'}", "{u'app_name': u'No id'}"))  # fmt: skip
    found = read_source(tmp_path)
    assert titles(found) == {"761140": "Lost Summoner Kitty", "725280": "Only a name"}
    assert found.dropped_items == {"missing_value": 1}
    assert rows(found) == [("Chaos Syren", "725280", 1513468800), ("it's ★ me", "725280", 1515024000)]
    assert found.dropped == {"bad_line": 1}


def test_yelp(tmp_path):
    write(tmp_path / "yelp_academic_dataset_review.json", as_lines({
        "review_id": "KU_O5", "user_id": "mh_-eMZ6K5RLWhZyISBhwA", "business_id": "XQfwVwDr-v0ZS3_CbbE5Xw",
        "stars": 3.0, "useful": 0, "text": "If you decide to eat here", "date": "2018-07-07 22:09:11"}))  # fmt: skip
    write(
        tmp_path / "yelp_academic_dataset_business.json",
        as_lines(
            {"business_id": "XQfwVwDr-v0ZS3_CbbE5Xw", "name": 'Turning Point of "North Wales"', "attributes": None}
        ),
    )
    found = read_source(tmp_path)
    assert titles(found) == {"XQfwVwDr-v0ZS3_CbbE5Xw": 'Turning Point of "North Wales"'}
    assert rows(found) == [("mh_-eMZ6K5RLWhZyISBhwA", "XQfwVwDr-v0ZS3_CbbE5Xw", 1531001351, 3.0)]


@pytest.mark.parametrize(("log", "books"), [("_poetry", "_poetry"), ("_dedup", "")])
def test_goodreads(tmp_path, log, books):
    shelved = {"user_id": "80d52f5e", "book_id": "402128", "review_id": "fbd6", "is_read": True, "rating": 4,
               "date_added": "Fri Apr 19 08:15:15 -0700 2013", "read_at": "", "started_at": ""}  # fmt: skip
    write(
        tmp_path / f"goodreads_interactions{log}.json.gz", as_lines(shelved, {**shelved, "rating": 0, "date_added": ""})
    )
    write(tmp_path / f"goodreads_books{books}.json.gz", as_lines(
        {"isbn": "", "book_id": "402128", "title": "Old Possum's Book", "authors": [{"author_id": "1"}]},
        {"book_id": "3", "title": ""}))  # fmt: skip
    found = read_source(tmp_path)
    assert titles(found) == {"402128": "Old Possum's Book"}
    assert found.dropped_items == {"no_title": 1}
    assert rows(found) == [("80d52f5e", "402128", 1366384515, 4.0), ("80d52f5e", "402128", None, None)]


# --- tables of one's own ---------------------------------------------------------------------------------------------


def test_csv_with_a_mapping_and_part_files(tmp_path):
    write(
        tmp_path / "interactions" / "part-0.csv.gz",
        "when,visitor,sku,stars\n2024-05-31,7,a,4\n2024-06-01 10:00:00,8,b,\n",
    )
    write(tmp_path / "interactions" / "part-1.csv", 'sku,visitor,when\n"a",9,1717200000000\nb,9,soon\nb\n')
    write(tmp_path / "interactions" / "_SUCCESS", "")
    write(tmp_path / "items.tsv", 'sku\tname\na\tBall, 12"\nb\t\n')
    found = read_source(tmp_path, columns={"user_id": "visitor", "item_id": "sku", "timestamp": "when", "title": "name",
                                           "rating": "stars"})  # fmt: skip
    assert titles(found) == {"a": 'Ball, 12"'}
    assert rows(found) == [(7, "a", 1717113600, 4.0), (8, "b", 1717236000, None), (9, "a", 1717200000, None)]
    assert found.dropped == {"bad_line": 2}
    assert found.examples["bad_line"] == ["part-1.csv, line 4", "part-1.csv, timestamp 'soon'"]


@pytest.mark.parametrize(
    ("users", "expected"), [("1,20", [1, 20]), ("01,20", ["01", "20"]), ("1,x", ["1", "x"]), ("1,", [1])]
)
def test_ids_of_csv_are_numbers_only_where_nothing_gets_lost(tmp_path, users, expected):
    one, two = users.split(",")
    write(tmp_path / "items.csv", "item_id,title\n5,Five\n6,Six\n")
    write(tmp_path / "interactions.csv", f"user_id,item_id,timestamp\n{one},5,1\n{two},6,2\n")
    found = read_source(tmp_path)
    assert [user for user, *_ in rows(found)] == expected
    assert titles(found) == {5: "Five", 6: "Six"}


def test_numbers_and_text_for_the_same_ids_become_text(tmp_path):
    write(tmp_path / "items.jsonl", as_lines({"item_id": "5", "title": "Five"}, {"item_id": "x", "title": "Ex"}))
    pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6], "timestamp": [1, 2]}).write_parquet(
        tmp_path / "interactions.parquet"
    )
    found = read_source(tmp_path)
    assert titles(found) == {"5": "Five", "x": "Ex"}
    assert rows(found) == [(1, "5", 1), (2, "6", 2)]


def test_a_single_table_with_a_title_in_each_row(tmp_path):
    path = write(tmp_path / "plays.jsonl", as_lines(
        {"user_id": "u", "item_id": 1, "title": "One", "timestamp": 10.5},
        {"user_id": "u", "item_id": 2, "timestamp": 11},
        "{broken", {"user_id": "v", "item_id": 1, "title": "Uno", "timestamp": 12}))  # fmt: skip
    found = read_source(path)
    assert titles(found) == {1: "One"}
    assert rows(found) == [("u", 1, 10), ("u", 2, 11), ("v", 1, 12)]
    assert found.dropped == {"bad_line": 1}


def test_parquet_keeps_what_is_known_of_noise(tmp_path):
    pl.DataFrame({
        "user_id": ["u", "u"], "item_id": [1, 2], "timestamp": [dt.datetime(2024, 1, 1), None], "noise_mask": [0, 1],
        "clean_item_id": [1, 1],
    }).write_parquet(tmp_path / "interactions.parquet")  # fmt: skip
    pl.DataFrame({"item_id": [1, 2], "title": ["One", "Two"]}).write_parquet(tmp_path / "items.parquet")
    (batch,) = read_source(tmp_path).batches()
    assert batch.rows() == [("u", 1, 1704067200, 0, 1), ("u", 2, None, 1, 1)]
    assert batch.columns == ["user_id", "item_id", "timestamp", "noise_mask", "clean_item_id"]


def test_a_quoted_field_may_hold_line_breaks_and_separators(tmp_path):
    write(tmp_path / "items.csv", 'item_id,title\na,"Two\nlines, and ""quotes"""\nb,5" tape\n')
    write(tmp_path / "interactions.csv", "user_id,item_id\nu,a\n")
    found = read_source(tmp_path)
    assert titles(found) == {"a": 'Two\nlines, and "quotes"', "b": '5" tape'}
    assert rows(found) == [("u", "a", None)]


def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    log = pl.DataFrame({"user_id": ["u", None, "v"], "item_id": [1, 1, 2], "timestamp": ["2024-01-01", "", "noon"]})
    return log, pl.DataFrame({"item_id": [1, 2, 2], "title": ["One", "Two", "Zwei"]})


@pytest.mark.parametrize("convert", [lambda f: f, pl.DataFrame.lazy, pl.DataFrame.to_pandas, pl.DataFrame.to_arrow])
def test_tables_in_memory(convert):
    log, items = frames()
    found = from_frames(convert(log), convert(items))
    assert titles(found) == {1: "One", 2: "Two"}
    assert found.dropped_items == {"repeated_item": 1}
    assert rows(found) == [("u", 1, 1704067200)]
    assert found.dropped == {"bad_line": 1, "missing_value": 1}


def test_pandas_numbers_with_gaps_are_still_numbers():
    log = pd.DataFrame(
        {"user_id": [3.0, None], "item_id": pd.Categorical(["a", "b"]), "timestamp": pd.to_datetime(["2024", "2025"])}
    )
    found = from_frames(log, pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]}))
    assert rows(found) == [(3, "a", 1704067200)]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([1, 2], "of type list; expected a table of Polars, pandas or Arrow"),
        (pl.DataFrame({"user_id": [1]}), "'item_id' is missing"),
        (pl.DataFrame({"user_id": [1.5], "item_id": [1]}), "type Float64; expected ids that are whole numbers or text"),
        (pl.DataFrame({"user_id": [[1]], "item_id": [1]}), "'user_id' of the interactions has the type List"),
        (pl.DataFrame({"item_id": [1], "user_id": pl.Series([2**64 - 1], dtype=pl.UInt64)}), "type UInt64"),
        (pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [dt.time(1)]}), "expected a number, a date"),
        (pa.table({"user_id": [1], "item_id": [1], "rating": [[1]]}), "'rating' of the interactions has the type List"),
    ],
)  # fmt: skip
def test_tables_in_memory_that_cannot_be_used(log, message):
    with pytest.raises(DataError, match=message):
        from_frames(log, pl.DataFrame({"item_id": [1], "title": ["One"]}))


@given(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0)))
def test_a_time_is_the_same_however_it_is_written(time):
    seconds = int((time - dt.datetime(1970, 1, 1)).total_seconds())
    texts = [time.isoformat(), time.isoformat(" "), f"{time.isoformat()}Z", f"{time.isoformat()}+00:00", str(seconds),
             time.strftime("%a %b %d %H:%M:%S +0000 %Y") if time.year >= 1000 else str(seconds)]  # fmt: skip
    assert source.to_seconds(pl.Series("timestamp", texts), "x").to_list() == [seconds] * len(texts)
    assert source.to_seconds(pl.Series("timestamp", [time]), "x").to_list() == [seconds]


def test_large_numbers_are_milliseconds_and_smaller_units():
    given = pl.Series(
        "timestamp", [1_700_000_000, 1_700_000_000_999, 1_700_000_000_999_999, 1_700_000_000_999_999_999, -5]
    )
    assert source.to_seconds(given, "x").to_list() == [1_700_000_000] * 4 + [-5]


# --- what goes wrong -------------------------------------------------------------------------------------------------


def csv_pair(folder: Path, log: str | bytes) -> Path:
    write(folder / "movies.csv", "movieId,title,genres\n1,One (1999),Drama\n")
    return write(folder / "ratings.csv", log)


def beauty(folder: Path, log: str | bytes) -> Path:
    write(folder / "meta_X.json.gz", as_lines({"asin": "B1", "title": "One"}))
    return write(folder / "X.json.gz", log)


def test_the_error_for_an_unknown_folder_says_what_was_found_and_what_is_known(tmp_path):
    write(tmp_path / "mystery.bin", b"\1\2")
    with pytest.raises(
        DataError, match=r"(?s)holds mystery.bin. Expected.*amazon-2014: reviews_X.json.gz.*table: inter"
    ):
        read_source(tmp_path)
    with pytest.raises(DataError, match="There is no file or folder"):
        read_source(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"There is no form 'netflix'. Known: amazon-2014, .*, table"):
        read_source(tmp_path, form="netflix")


def test_gzip_cut_short(tmp_path):
    path = beauty(tmp_path, as_lines(*(review(f"A{i}", "B1", 5.0, i) for i in range(2000))))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"X.json.gz is cut short: its gzip stream ends in line \d+, byte \d+"):
        rows(read_source(tmp_path))


def test_gzip_with_a_flipped_bit(tmp_path):
    path = beauty(tmp_path, as_lines(*(review(f"A{i}", "B1", 5.0, i) for i in range(2000))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"X.json.gz (is damaged after|: line|is cut short)"):
        rows(read_source(tmp_path))


def test_bytes_that_are_not_utf_8(tmp_path):
    csv_pair(tmp_path, "userId,movieId,rating,timestamp\n1,1,4.0,9\n1,é,4.0,9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"ratings.csv: line 3, byte 3 of it, is not UTF-8 \(0xe9\)"):
        rows(read_source(tmp_path))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"<!DOCTYPE html><p>404</p>", "a web page instead of data"),
        (b"PK\x03\x04" + b"\0" * 30, "a zip archive: unpack it first"),
        ("userId,movieId\n1,1\n".encode("utf-16"), "UTF-16"),
        (b"\1\0\2\0", "zero bytes"),
        (b'{"reviewerID": "A1"}', "has the columns"),
        (b"userId,movieId,rating,timestamp\n1;1;4.0;9\n", "no line of its first 1 has 4 columns"),
        (b'userId,movieId,rating,timestamp\n1,1,4.0,9\n1,1,"4.0,9\n' + b"1,1,4.0,9\n" * 9, "never closed"),
    ],
)
def test_a_file_of_another_format(tmp_path, log, message):
    csv_pair(tmp_path, log)
    with pytest.raises(DataError, match=message):
        rows(read_source(tmp_path))


def test_json_of_another_publisher(tmp_path):
    beauty(tmp_path, as_lines({"user": 1, "item": 2}))
    with pytest.raises(DataError, match=r"none of its first 1 line\(s\) is a record with reviewerID, asin"):
        rows(read_source(tmp_path))
    beauty(tmp_path, META_2014)
    with pytest.raises(DataError, match="of another format"):
        rows(read_source(tmp_path))
    write(tmp_path / "X.json.gz", b"").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"is named \.gz but is no gzip file"):
        rows(read_source(tmp_path))


def test_parquet_cut_short(tmp_path):
    write(tmp_path / "items.csv", "item_id,title\n5,Five\n")
    path = tmp_path / "interactions.parquet"
    pl.DataFrame({"user_id": range(1000), "item_id": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_source(tmp_path)


def test_arrow_text_that_is_not_utf_8(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xe9"], pa.binary()).buffers())
    log = pa.table({"user_id": [1], "item_id": text})
    with pytest.raises(DataError, match=r"the interactions cannot be read: .*UTF8"):
        from_frames(log, pl.DataFrame({"item_id": ["a"], "title": ["A"]}))
    pq.write_table(log, tmp_path / "interactions.parquet")
    write(tmp_path / "items.csv", "item_id,title\na,A\n")
    with pytest.raises(DataError, match=r"cannot be read as Parquet: .*UTF8"):
        read_source(tmp_path)


def test_items_without_any_title(tmp_path):
    write(tmp_path / "items.csv", "item_id,title\n5,\n")
    write(tmp_path / "interactions.csv", "user_id,item_id\n1,5\n")
    with pytest.raises(DataError, match="None of the 1 row"):
        read_source(tmp_path)
    write(tmp_path / "items.csv", "")
    with pytest.raises(DataError, match="empty"):
        read_source(tmp_path)


WHOLE = {
    "amazon": {"X.json.gz": as_lines(*(review(f"A{i}", "B1", 5.0, i) for i in range(5))),
               "meta_X.json.gz": as_lines({"asin": "B1", "title": "One"})},
    "steam": {"steam_reviews.json.gz": "{u'username': u'a', u'product_id': u'72', u'date': u'2017-12-17'}\n" * 3,
              "steam_games.json.gz": "{u'app_name': u'G', u'id': u'72', u'tags': [u'Indie']}\n"},
    "movielens": {"ratings.dat": "1::1193::5::978300760\n" * 3, "movies.dat": "1193::One: Two (1999)::Drama\n"},
    "tables": {"interactions.csv": 'user_id,item_id,timestamp\n1,"a b",2024-05-31\n',
               "items.csv": "item_id,title\na b,A\n"},
}  # fmt: skip
DAMAGE = st.sampled_from(
    [b'"', b"\r", b"\n", b"\0", b"\xff", b"'", b"{", b"[" * 300, b"9" * 5000, b"-", b"1e400", b",", b"::"]
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, data):
    """Anything cut out of a file and put into it, before or after packing: no other error than a DataError."""
    folder = tmp_path_factory.mktemp("damaged")
    files = WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))]
    victim = data.draw(st.sampled_from(sorted(files)))
    packed = data.draw(st.booleans())

    def damaged(body: bytes) -> bytes:
        begin, length = data.draw(st.integers(0, len(body))), data.draw(st.integers(0, 30))
        return body[:begin] + data.draw(DAMAGE | st.binary(max_size=5)) + body[begin + length :]

    for name, text in files.items():
        path = write(folder / name, damaged(text.encode()) if name == victim and not packed else text)
        if name == victim and packed:
            path.write_bytes(damaged(path.read_bytes()))
    try:
        found = read_source(folder)
        batches = list(found.batches())
    except DataError:
        return
    for batch in batches:
        assert batch.schema["item_id"] == found.items.schema["item_id"]
        assert not batch["user_id"].null_count()


# --- streaming -------------------------------------------------------------------------------------------------------


def test_batches_are_bounded_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BATCH_ROWS", 7)
    monkeypatch.setattr(lines, "CHUNK", 300)
    wanted = [(f"A{i}", "B1", i, 5.0) for i in range(50)]
    beauty(tmp_path, as_lines(*(review(user, item, stars, time) for user, item, time, stars in wanted)))
    batches = list(read_source(tmp_path).batches())
    assert [len(batch) for batch in batches] == [7] * 7 + [1]
    assert [row for batch in batches for row in batch.rows()] == wanted


NO_ZERO = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(NO_ZERO, max_size=8), min_size=1, max_size=12), st.integers(1, 60))
def test_chunks_never_cut_a_quoted_field(tmp_path_factory, texts, size):
    """However small the chunks are, the table is the one that was written."""
    folder = tmp_path_factory.mktemp("csv")
    log = pl.DataFrame({"user_id": texts, "item_id": ["a"] * len(texts)})
    log.write_csv(folder / "interactions.csv", quote_style="always")
    write(folder / "items.csv", "item_id,title\na,A\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK", size)
        patch.setattr(lines, "PIECE", size)
        assert [str(user) for user, *_ in rows(read_source(folder))] == [text for text in texts if text]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["asin", "title", "price", "related"]), VALUES))
def test_literals_are_read_as_python_reads_them(record):
    expected = {name: None if record.get(name) is None else str(record[name]) for name in ("asin", "title")}
    found = literal(repr(record), ("asin", "title"))
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "line",
    [
        "{'asin': 1", "{'asin'}", "['asin']", "x {'asin': 1}", "{'asin': 1} x", "{'asin': __import__('os')}",
        "(" * 5000, "{'asin': " + "-" * 100_000 + "1}",
    ],
)  # fmt: skip
def test_what_is_no_literal_is_refused_and_not_run(line):
    with pytest.raises((ValueError, SyntaxError, MemoryError, RecursionError)):
        literal(line, ("asin",))
