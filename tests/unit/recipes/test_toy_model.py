"""The toy model's tokenizer keeps prompts short and loses no text; its labels are the answers'."""

import pytest
from transformers import AutoTokenizer

from recipes.quickstart.toy_model import IGNORED, encode, examples, main, make_toy_model, train_tokenizer


@pytest.fixture(scope="module", params=("toolrl", "tldr"))
def task(request):
    rows = examples(request.param, 64, seed=0)
    return rows, train_tokenizer(rows)


def test_a_line_that_all_prompts_share_is_one_token(task):
    rows, tokenizer = task
    lines = [set("\n".join(turn["content"] for turn in prompt).splitlines(keepends=True)) for prompt, _ in rows]
    shared = set.intersection(*lines) - {"\n"}
    assert shared
    assert all(len(tokenizer.encode(line)) == 1 for line in shared)
    assert not any(len(tokenizer.encode(line)) == 1 for line in set.union(*lines) - shared if len(line) > 3)


def test_prompts_and_answers_come_back_as_they_were(task):
    rows, tokenizer = task
    for prompt, answer in rows:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(answer)) == answer
    (line_break,) = tokenizer.encode("\n")  # one token, by which verl finds where a turn ends
    assert tokenizer.decode(line_break) == "\n"


def test_the_quickstarts_longest_prompt_fits_its_limit():
    from tests.configs import compose

    rows = examples("toolrl", 512, seed=0)
    tokenizer = train_tokenizer(rows)
    data = compose("experiment=quickstart").data
    prompts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p, _ in rows]
    assert max(map(len, prompts)) == data.max_prompt_length
    assert max(len(tokenizer.encode(answer)) for _, answer in rows) < data.max_response_length


def test_labels_are_the_answers_tokens_and_nothing_else(task):
    rows, tokenizer = task
    ids, labels = encode(tokenizer, rows[:4])
    for (_, answer), row, label in zip(rows[:4], ids, labels, strict=True):
        kept = label != IGNORED
        assert tokenizer.decode(label[kept & (label != tokenizer.pad_token_id)]) == answer + tokenizer.eos_token
        assert (row[kept] == label[kept]).all()


@pytest.mark.parametrize("kind", ["toolrl", "tldr"])
def test_the_saved_tokenizer_is_loaded_as_the_one_of_the_warm_up(kind, tmp_path):
    """Kind: a prompt that training, rollout and warm-up cut into different tokens."""
    rows = examples(kind, 512, 0)
    made = train_tokenizer(rows)
    loaded = AutoTokenizer.from_pretrained(make_toy_model(tmp_path / "model", task=kind, steps=0))
    assert len(loaded) == len(made)
    for prompt, answer in rows:
        ids = [t.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) for t in (made, loaded)]
        assert ids[0] == ids[1]
        assert made.encode(answer) == loaded.encode(answer)
        assert loaded.decode(loaded.encode(answer)) == answer


@pytest.mark.parametrize(
    "options", [("--steps", "-2"), ("--spoilt-format", "1.5"), ("--spoilt-format", "nan"), ("--wrong-value", "-0.1")]
)
def test_options_out_of_range_are_refused(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "model"), *options])
    assert ended.value.code == 2
    assert f"{options[0]} is {options[1]}; expected" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
