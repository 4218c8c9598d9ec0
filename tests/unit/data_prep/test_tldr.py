"""Posts and summaries, from a source to verl's rows."""

import json

import pytest
from datasets import Dataset, load_dataset

from data_prep import toy_tldr
from data_prep.tldr import BadSource, prepare
from data_prep.toy_tldr import make_posts, write_posts


@pytest.fixture
def posts(tmp_path):
    path = tmp_path / "posts.jsonl"
    write_posts(path, 60)
    return path


def make(out, posts, toy_model, **more):
    sizes = more.pop("sizes", (20, 8))
    return prepare(out, source=str(posts), tokenizer=str(toy_model), sizes=sizes, **more)


def rows(out, split):
    return Dataset.from_parquet(str(out / f"{split}.parquet")).to_list()


def test_rows_have_what_the_trainer_and_the_judge_need(tmp_path, posts, toy_model):
    report = make(tmp_path / "out", posts, toy_model)
    train = rows(tmp_path / "out", "train")
    assert len(train) == 20
    row = train[0]
    source = {post["prompt"].removesuffix("TL;DR:").strip(): post["completion"] for post in make_posts(60)}
    assert row["reward_model"]["ground_truth"] == source[row["extra_info"]["post"]]
    assert row["prompt"][0]["content"].endswith(row["extra_info"]["post"])
    assert "TL;DR" not in row["prompt"][0]["content"]
    assert row["data_source"] == "tldr"
    assert report["train"]["prompt_tokens"]["max"] == max(row["extra_info"]["prompt_tokens"] for row in train)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_splits_are_disjoint_and_follow_the_seed_not_the_order(tmp_path, posts, toy_model):
    make(tmp_path / "a", posts, toy_model)
    lines = posts.read_text().splitlines(keepends=True)
    posts.write_text("".join(reversed(lines)))
    make(tmp_path / "b", posts, toy_model)
    ids = json.loads((tmp_path / "a" / "ids.json").read_text())
    assert ids == json.loads((tmp_path / "b" / "ids.json").read_text())
    assert len(set(ids["train"]) | set(ids["test"])) == 28
    make(tmp_path / "c", posts, toy_model, seed=1)
    assert ids != json.loads((tmp_path / "c" / "ids.json").read_text())
    make(tmp_path / "d", posts, toy_model, seed=1, ids=tmp_path / "a" / "ids.json")
    assert rows(tmp_path / "d", "test") == rows(tmp_path / "a", "test")


def test_repeated_and_empty_posts_are_left_out(tmp_path, posts, toy_model):
    lines = posts.read_text()
    empty = json.dumps({"prompt": "  ", "completion": "x"}) + "\n" + json.dumps({"prompt": "x", "completion": None})
    posts.write_text(lines + lines + empty + "\n")
    assert make(tmp_path / "out", posts, toy_model)["posts"] == 60


def test_overlong_posts_are_counted_and_left_out(tmp_path, posts, toy_model):
    long = {"prompt": "word " * 500, "completion": "long"}
    posts.write_text(json.dumps(long) + "\n" + posts.read_text())
    report = make(tmp_path / "out", posts, toy_model, sizes=(52, 8), max_prompt_tokens=200)
    assert report["overlong_among_those_looked_at"] == 1
    assert all(row["extra_info"]["prompt_tokens"] <= 200 for row in rows(tmp_path / "out", "train"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"source": "absent.jsonl"}, "absent.jsonl: there is no such file"),
        ({"sizes": (100, 8)}, "60 posts of at most 2048 tokens; 108 are needed"),
        ({"columns": ("text", "completion")}, "there is no column 'text'; there are prompt, completion"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(tmp_path, posts, toy_model, change, fault):
    with pytest.raises(BadSource, match=fault):
        prepare(tmp_path / "out", **{"source": str(posts), "tokenizer": str(toy_model), "sizes": (20, 8), **change})


CHAT = [{"role": "user", "content": "a post"}]


@pytest.mark.parametrize("ending", ["jsonl", "json", "lines.json", "parquet"])
@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": CHAT, "completion": "s"}, "prompt is a list of messages; expected a text"),
        ({"prompt": "p", "completion": CHAT}, "completion is a list of messages; expected a text"),
        ({"prompt": ["a", "b"], "completion": "s"}, r"prompt is \['a', 'b'\] \(list\)"),
        ({"prompt": 7, "completion": "s"}, r"prompt is 7 \(int\)"),
        ({"prompt": "p", "completion": {"text": "s"}}, r"completion is .* \(dict\)"),
        ({"prompt": "p", "summary": "s"}, "there is no column 'completion'; there are prompt, summary"),
    ],
)
def test_an_odd_row_is_named_by_file_row_and_fault(tmp_path, toy_model, row, fault, ending):
    """Kind: an internal traceback, for any file format."""
    path = tmp_path / f"odd.{ending}"
    if ending == "parquet":
        Dataset.from_list([row]).to_parquet(path)
        number = 0
    else:
        rows = [*make_posts(3), row]
        text = json.dumps(rows) if ending == "json" else "".join(json.dumps(each) + "\n" for each in rows)
        path.write_text(text)
        number = 3
    with pytest.raises(BadSource, match=rf"odd\.{ending}: row {number}: .*{fault}"):
        make(tmp_path / "out", path, toy_model)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b'{"prompt": "p", "comp', "line 1: not valid JSON"),
        ("a.jsonl", b'{"prompt": "p", "completion": "s"}\n{"prompt": "p", "comp', "line 2: not valid JSON"),
        ("a.jsonl", b'{"prompt": "\xff"}', "line 1: not valid JSON"),
        ("a.jsonl", b"[1, 2]\n", "row 0 is int; expected an object"),
        ("a.json", b'[{"prompt": "p", "completion": "s"}, {"pro', "is not a complete JSON array, after 1 rows"),
        ("a.jsonl", b'{"prompt": "\\ud800", "completion": "s"}', "row 0: prompt contains half of a surrogate pair"),
        ("a.json", b"7", "row 0 is int"),
        ("a.parquet", b"", "is not a complete parquet"),
        ("a.parquet", b"PAR1 but not more", "is not a complete parquet"),
        ("a.csv", b"a,b", "expected a .json, .jsonl or .parquet"),
    ],
)
def test_a_broken_file_is_named(tmp_path, toy_model, name, content, fault):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadSource, match=f"{name}.*{fault}"):
        make(tmp_path / "out", tmp_path / name, toy_model)


def test_a_cut_parquet_is_named(tmp_path, posts, toy_model):
    load_dataset("json", data_files=str(posts), split="train").to_parquet(tmp_path / "posts.parquet")
    content = (tmp_path / "posts.parquet").read_bytes()
    for length in (len(content) - 1, len(content) // 2, 4):
        (tmp_path / "posts.parquet").write_bytes(content[:length])
        with pytest.raises(BadSource, match=r"posts\.parquet is not a complete parquet file, after 0 rows"):
            make(tmp_path / "out", tmp_path / "posts.parquet", toy_model)


def test_lines_end_at_a_line_feed_only(tmp_path, posts, toy_model):
    odd = {"prompt": "one\u2028two\u0085three", "completion": "s"}
    posts.write_text(posts.read_text() + json.dumps(odd, ensure_ascii=False) + "\n", encoding="utf-8")
    assert make(tmp_path / "out", posts, toy_model)["posts"] == 61


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ("{", "could not be read"),
        ("[]", "expected a list of ids under 'train'"),
        ('{"train": ["a"]}', "expected a list of ids under 'test'"),
        ('{"train": [1], "test": []}', "expected a list of ids under 'train'"),
        ('{"train": ["a"], "test": ["a"]}', "lists a twice"),
    ],
)
def test_broken_ids_are_named(tmp_path, posts, toy_model, ids, fault):
    (tmp_path / "ids.json").write_text(ids)
    with pytest.raises(BadSource, match=rf"--ids .*ids\.json.*{fault}"):
        make(tmp_path / "out", posts, toy_model, ids=tmp_path / "ids.json")


def test_what_cannot_be_prepared_is_refused(tmp_path, posts, toy_model):
    with pytest.raises(BadSource, match="expected at least 1 of each"):
        make(tmp_path / "out", posts, toy_model, sizes=(20, 0))
    with pytest.raises(BadSource, match=r"--tokenizer .* cannot be used"):
        make(tmp_path / "out", posts, tmp_path)


def test_ids_that_are_not_in_the_source_are_named(tmp_path, posts, toy_model):
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps({"train": ["nope"], "test": []}))
    with pytest.raises(BadSource, match=r"1 of the rows in .* the first is nope"):
        make(tmp_path / "out", posts, toy_model, ids=ids)


def test_without_a_network_it_says_what_to_do(tmp_path, toy_model, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("data_prep.tldr.load_dataset", unreachable)
    with pytest.raises(BadSource, match=r"trl-lib/tldr at revision main could not be read.*use --source FILE"):
        prepare(tmp_path, source=None, tokenizer=str(toy_model))


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path, posts, toy_model, hub):
    """Kind: five more tries of half a minute for each file that a library looks for."""
    hub.answers(ConnectionError("no route to host"))
    with pytest.raises(BadSource, match=r"trl-lib/tldr at revision main could not be read.*no route.*--source FILE"):
        prepare(tmp_path, source=None, tokenizer=str(toy_model))
    with pytest.raises(BadSource, match=r"(?s)--tokenizer Somebody/toy cannot be used.*no route"):
        prepare(tmp_path, source=str(posts), tokenizer="Somebody/toy")
    assert len(hub.asked) == 1


def test_a_parquet_is_read_too(tmp_path, posts, toy_model):
    load_dataset("json", data_files=str(posts), split="train").to_parquet(tmp_path / "posts.parquet")
    assert make(tmp_path / "out", tmp_path / "posts.parquet", toy_model)["posts"] == 60


@pytest.mark.parametrize("rows", ["0", str(toy_tldr.MOST + 1)])
def test_a_number_of_toy_posts_that_cannot_be_made_is_named(rows, tmp_path, monkeypatch, capsys):
    """Kind: a search for one more different post that never ends."""
    monkeypatch.setattr("sys.argv", ["toy_tldr", "--out", str(tmp_path / "posts.jsonl"), "--rows", rows])
    with pytest.raises(SystemExit):
        toy_tldr.main()
    assert f"--rows is {rows}; expected 1 to {toy_tldr.MOST}" in capsys.readouterr().err
