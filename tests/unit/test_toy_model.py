"""The toy model's warm-up computes what is plainly the loss of its answers, however much its rows share."""

import pytest
import torch

from recipes.quickstart.toy_model import encode, examples, loss_of, make_model, train_tokenizer

ROWS = examples("toolrl", 24, seed=0)
TOKENIZER = train_tokenizer([turn["content"] for prompt, _ in ROWS for turn in prompt] + [answer for _, answer in ROWS])


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:6],
        ROWS[:1],  # nothing differs
        [ROWS[0], ROWS[0]],
        [(ROWS[0][0], "yes"), (ROWS[0][0], "no")],  # the answers differ, the questions do not
        [([{"role": "user", "content": "a"}], "b"), ([{"role": "system", "content": "c"}], "d")],  # nothing is shared
    ],
)
def test_a_shared_beginning_changes_neither_loss_nor_gradients(rows):
    torch.manual_seed(0)
    model = make_model(len(TOKENIZER), TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, layers=2)
    ids, labels = encode(TOKENIZER, rows)
    plain = model(input_ids=ids, attention_mask=(ids != TOKENIZER.pad_token_id).long(), labels=labels).loss
    plain.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss = loss_of(model, ids, labels)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
