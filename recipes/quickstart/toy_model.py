"""A small Qwen2 with its own tokenizer, trained for a short time on flawed answers.

    python -m recipes.quickstart.toy_model --out runs/quickstart/model
    python -m recipes.quickstart.toy_model --out runs/rehearsal/tldr/model --task tldr     # summaries, not tool calls

It takes the place of a downloaded model and is a normal Hugging Face folder. The warm-up is supervised and short. Some
of its answers have a broken format, some a wrong parameter, so that both rewards start between their minimum and their
maximum and can be improved.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from data_prep import tldr
from data_prep.toy_tldr import make_posts
from data_prep.toy_toolrl import TOOLS, make_rows, tool_turn

logger = logging.getLogger(__name__)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Tags that are one token each, as ``<tool_call>`` is in Qwen2.5's tokenizer.
TAGS = [f"<{slash}{tag}>" for tag in ("think", "tool_call", "response", "user") for slash in ("", "/")]
#: The file that is moved into the model's folder last: if it exists, the model is complete.
WEIGHTS = "model.safetensors"
IGNORED = -100  # label of a token that the loss skips
#: A question as a chat, and its answer.
Example = tuple[list[dict[str, str]], str]


def train_tokenizer(rows: list[Example], vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; with the full byte alphabet, a line break is one token, as verl needs.

    A line that all questions share, such as a tool's description, becomes one token: it carries no information, and
    shorter prompts make steps faster.
    """
    questions = ["\n".join(turn["content"] for turn in prompt) for prompt, _ in rows]
    shared = set.intersection(*(set(question.splitlines(keepends=True)) for question in questions)) - {"\n"}
    texts = questions + [answer for _, answer in rows] + ["system", "user", "assistant"] * len(rows)
    bpe = Tokenizer(models.BPE())
    # AutoTokenizer loads a Qwen2's tokenizer with Qwen2's own pieces, whatever was saved
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    bpe.normalizer, bpe.pre_tokenizer = qwen2.normalizer, qwen2.pre_tokenizer
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    )
    bpe.add_tokens(TAGS + sorted(shared))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def make_model(vocabulary: int, pad: int, eos: int, width: int = 96, layers: int = 2) -> Qwen2ForCausalLM:
    """A Qwen2; with two layers of width 96 it has 0.25 million parameters. The width is a multiple of 96."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 96,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            pad_token_id=pad,
            eos_token_id=eos,
            bos_token_id=None,
        )
    )


def spoil(output: str, chance: random.Random, spoilt_format: float, wrong_value: float) -> str:
    """Spoil an answer at random: a wrong parameter, a broken format, both or neither."""
    if "<tool_call>" in output and chance.random() < wrong_value:
        name = next(name for name in TOOLS if name in output)
        output = tool_turn(name, chance.choice(TOOLS[name][2]))
    if chance.random() < spoilt_format:
        output = output.replace("</think>\n", "</think> ", 1)
    return output


def ramble(summary: str, chance: random.Random) -> str:
    """Spoil a summary at random: remove a word, add some, both or neither."""
    words = summary.split()
    if chance.random() < 0.5:
        words.pop(chance.randrange(len(words)))
    if chance.random() < 0.5:
        words += ["and", "so", "on"] * chance.randint(1, 3)
    return " ".join(words)


def examples(task: str, number: int, seed: int) -> list[Example]:
    """Questions with correct answers: tool calls in ToolRL's format (toolrl), or summaries of posts (tldr)."""
    if task == "toolrl":
        return [(row["prompt"], row["reward_model"]["ground_truth"]) for row in make_rows(number, "warm-up", seed=seed)]
    posts = make_posts(min(number, 1024), seed=seed)
    return [(tldr.prompt(post["prompt"].removesuffix("TL;DR:").strip()), post["completion"]) for post in posts]


def warm_up(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[Example],
    spoilt: Callable[[str, random.Random], str],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> None:
    """Train on flawed answers, with the loss on the answers only."""
    chance = random.Random(seed)
    peak = 6e-3  # a model this small only learns to attend to the question with many small steps at a high rate
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps, pct_start=0.1)
    model.train()
    threads = torch.get_num_threads()
    # a model this small gains little from more threads, and loses much when another process needs a core
    torch.set_num_threads(1)
    for _ in tqdm(range(steps), desc="    warm-up", leave=False, disable=None):
        batch = [(prompt, spoilt(answer, chance)) for prompt, answer in chance.sample(rows, batch_size)]
        ids, labels = encode(tokenizer, batch)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    torch.set_num_threads(threads)
    logger.info("warm-up: loss %.3f after %d steps", loss.item(), steps)


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[tuple[list[dict], str]]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, right-padded, shape ``(B, T)``."""
    ids, labels = [], []
    for prompt, answer in batch:
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        after = tokenizer.encode(answer + tokenizer.eos_token)
        ids.append(torch.tensor(before + after))
        labels.append(torch.tensor([IGNORED] * len(before) + after))
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad(labels, batch_first=True, padding_value=IGNORED),
    )


def make_toy_model(
    folder: Path,
    *,
    task: str = "toolrl",
    steps: int = 300,
    batch_size: int = 12,
    spoilt_format: float = 0.5,
    wrong_value: float = 0.5,
    seed: int = 0,
    width: int = 96,
    layers: int = 2,
) -> Path:
    """Make, warm up and save the model and its tokenizer.

    Args:
        folder (Path): the Hugging Face folder to write.
        task (str): toolrl or tldr.
        steps (int): supervised steps; 0 leaves random weights.
        batch_size (int): rows per step.
        spoilt_format (float): share of answers with a broken format (toolrl).
        wrong_value (float): share of tool calls with a random value (toolrl).
        seed (int): seed of weights and data.
        width (int): width of the hidden states, a multiple of 96.
        layers (int): number of layers.

    Returns:
        Path: the folder.
    """
    torch.manual_seed(seed)
    rows = examples(task, 512, seed)
    tokenizer = train_tokenizer(rows)
    model = make_model(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, width, layers)
    if steps:

        def spoilt(answer: str, chance: random.Random) -> str:
            return spoil(answer, chance, spoilt_format, wrong_value) if task == "toolrl" else ramble(answer, chance)

        rows = examples(task, 2048, seed + 100)
        warm_up(model, tokenizer, rows, spoilt, steps=steps, batch_size=batch_size, seed=seed)
    unfinished = folder.with_name(folder.name + ".unfinished")
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(unfinished.iterdir(), key=lambda file: file.name == WEIGHTS):
        file.replace(folder / file.name)
    unfinished.rmdir()
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--task", choices=("toolrl", "tldr"), default="toolrl", help="task of the warm-up")
    parser.add_argument("--steps", type=int, default=300, help="supervised warm-up steps")
    parser.add_argument("--spoilt-format", type=float, default=0.5, help="share of answers with a broken format")
    parser.add_argument("--wrong-value", type=float, default=0.5, help="share of tool calls with a random value")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.steps < 0:
        parser.error(f"--steps is {arguments.steps}; expected 0 or more")
    for name in ("spoilt_format", "wrong_value"):
        if not 0 <= getattr(arguments, name) <= 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected a share between 0 and 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_toy_model(
        arguments.out,
        task=arguments.task,
        steps=arguments.steps,
        spoilt_format=arguments.spoilt_format,
        wrong_value=arguments.wrong_value,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
