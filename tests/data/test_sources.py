"""Readers: small files in each publisher's format, with the irregularities of the real ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from llm4dsr.data.sources import Source, read_source
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
    """All rows of a log, with times in seconds."""
    seconds = pl.col("timestamp").dt.epoch("us") / 10**6
    return [row for batch in found.batches() for row in batch.with_columns(seconds).rows()]


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
    assert rows(found) == [("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8E0", 1588687728.923, 5.0)]


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
