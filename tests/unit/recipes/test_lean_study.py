"""The lean trainer: verl's settings, loss and data order, samples fixed by the seed, and a set that goes on."""

import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from data_prep.toy_toolrl import make_rows
from recipes.quickstart.toy_model import make_toy_model
from recipes.study import language_model as lm
from recipes.study import lean, lean_study
from saw.report.history import LOG, read_run
from saw.report.summary import AREA, area_under_curve
from tests.configs import compose
from tests.conftest import ROOT
from tests.unit.recipes.test_language_model_study import make_run

STUDY = ROOT / "results" / "study" / "lean"
SAME_START = ROOT / "results" / "study" / "same_start"
ROWS = make_rows(64, "train", seed=0)


@pytest.fixture(scope="module")
def settings() -> lean.Settings:
    return lean.settings_of(compose("experiment=study", "saw.method=saw_gdpo"))


@pytest.fixture(scope="module")
def small(settings) -> lean.Settings:
    return replace(settings, prompts=2, steps=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Random weights: enough for everything but learning."""
    return make_toy_model(tmp_path_factory.mktemp("toy") / "model", steps=0)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def without_times(steps) -> list[dict[str, float]]:
    return [{name: value for name, value in step.items() if not name.startswith("timing_s/")} for step in steps]


def test_the_settings_are_those_that_verl_is_given(settings):
    """Kind: a default that was copied wrongly, or that a newer verl changes."""
    assert settings == lean.Settings(
        method="saw_gdpo",
        profile="paper",
        seed=1,
        steps=50,
        prompts=16,
        longest_prompt=43,
        longest_response=48,
        samples=4,
        lr=3e-4,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        clip_grad=1.0,
        clip_low=0.2,
        clip_high=0.2,
        clip_dual=3.0,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-sum"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 8),
        ("actor_rollout_ref.rollout.temperature", 0.7),
        ("saw.options.ema", 0.5),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(key, value):
    config = compose("experiment=study")
    OmegaConf.update(config, key, value)
    with pytest.raises(ValueError, match=rf"{key} is {value!r}; the lean trainer only has"):
        lean.settings_of(config)


@pytest.mark.parametrize(
    ("override", "fault"), [("nokey=1", "'nokey'"), ("saw.options.ema=0.5", "saw.options.ema is 0.5")]
)
def test_the_command_names_what_it_cannot_do_before_it_makes_anything(override, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAW_RUNS", str(tmp_path / "runs"))
    with pytest.raises(SystemExit):
        lean_study.main([override])
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_method_that_compares_gradients_is_refused():
    with pytest.raises(ValueError, match=r"saw\.method is 'gradient_grpo'"):
        lean.settings_of(compose("experiment=study", "saw.method=gradient_grpo"))


def test_the_loss_is_verl_s(settings):
    """Off-policy values, so that every clip is used: from below, from above, and the dual one."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    generator = torch.Generator().manual_seed(0)
    old, new, advantages = (torch.randn(8, 6, generator=generator) for _ in range(3))
    mask = (torch.arange(6) < torch.randint(1, 7, (8, 1), generator=generator)).long()
    config = ActorConfig(strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=8)
    new.requires_grad_()
    expected, metrics = compute_policy_loss_vanilla(old, new, advantages, mask, "token-mean", config)
    assert metrics["actor/pg_clipfrac"] > 0
    assert metrics["actor/pg_clipfrac_lower"] > 0
    found = lean.policy_loss(new, old, advantages, mask, settings)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, new, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_data_come_in_verl_s_order():
    """Over two epochs, through verl's own sampler and the loader that its synchronous trainer builds."""
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.trainer.ppo.utils import create_rl_sampler

    rows = list(range(10))
    sampler = create_rl_sampler(OmegaConf.create({"shuffle": True, "seed": 7}), rows)
    loader = StatefulDataLoader(rows, batch_size=4, sampler=sampler, drop_last=True, collate_fn=list)
    expected = [batch for _ in range(2) for batch in loader]
    batches = lean.data_order(rows, 4, seed=7)
    assert [next(batches) for _ in range(4)] == expected
    assert expected[:2] != expected[2:]


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"data.train_batch_size is 16; there are only 3 rows whose prompt fits"):
        next(lean.data_order(range(3), 16, seed=1))


def test_a_seed_is_a_seed(small, model):
    """Bit for bit; another seed has other data and samples."""
    first, again = (without_times(lean.steps_of(small, model, ROWS)) for _ in range(2))
    assert first == again
    assert first != without_times(lean.steps_of(replace(small, seed=2), model, ROWS))


def test_methods_of_a_seed_share_their_first_samples(small, model):
    """So that they are pairs; later samples differ with the policy."""
    starts = [
        next(lean.steps_of(replace(small, method=method), model, ROWS)) for method in ("grpo", "gdpo", "saw_grpo")
    ]
    for name in ("saw/format/mean", "saw/correctness/mean", "actor/entropy", "response_length/mean"):
        assert len({step[name] for step in starts}) == 1


def load(model: Path):
    return (
        lean.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        lean.AutoTokenizer.from_pretrained(model),
    )


def test_the_samples_are_those_of_the_whole_text(model):
    """Kind: a wrong position or mask of a padded prompt; compares with a forward pass of each text alone."""
    policy, tokenizer = load(model)
    rows = [ROWS[7], ROWS[0], ROWS[1]]  # a greeting is shorter than a question
    prompts, prompt_mask = lean.encode(tokenizer, rows)
    assert (prompt_mask == 0).any()
    drawn, mask = lean.sample(policy, prompts, prompt_mask, 2, longest=5, generator=torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    for place in range(drawn.shape[1]):
        texts = [
            torch.cat([prompts[row // 2][prompt_mask[row // 2] == 1], drawn[row, :place]])[None]
            for row in range(2 * len(rows))
        ]
        with torch.no_grad():
            logits = torch.cat([policy(input_ids=text).logits[:, -1] for text in texts])
        expected = lean.draw(logits, again)[:, 0]
        still = mask[:, place] == 1
        assert drawn[still, place].tolist() == expected[still].tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Kind: a token too far in the distribution function; the first and the last token, and one that is impossible."""
    share = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = lean.draw(share.log().expand(200_000, 4), torch.Generator().manual_seed(0))
    found = torch.bincount(drawn[:, 0], minlength=4) / len(drawn)
    torch.testing.assert_close(found, share, rtol=0, atol=0.005)


def test_a_response_ends_with_its_end_token(model):
    """The end belongs to the response, as with vLLM; what follows is padding outside of the mask."""
    policy, tokenizer = load(model)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    prompts, prompt_mask = lean.encode(tokenizer, ROWS[:4])
    drawn, mask = lean.sample(policy, prompts, prompt_mask, 4, longest=200, generator=torch.Generator().manual_seed(0))
    lengths = mask.sum(dim=1).tolist()
    assert min(lengths) < drawn.shape[1]
    for tokens, length in zip(drawn.tolist(), lengths, strict=True):
        assert end not in tokens[: length - 1]
        assert tokens[length - 1] == end or length == 200
        assert set(tokens[length:]) <= {pad}


def test_an_update_raises_what_was_rewarded(settings, model):
    policy, tokenizer = load(model)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    prompts, prompt_mask = lean.encode(tokenizer, [ROWS[7], ROWS[0]])
    drawn, mask = lean.sample(policy, prompts, prompt_mask, 1, longest=6, generator=torch.Generator().manual_seed(0))

    def log_probability() -> torch.Tensor:
        found = []
        for row in range(2):
            prompt = prompts[row][prompt_mask[row] == 1]
            with torch.no_grad():
                logits = policy(input_ids=torch.cat([prompt, drawn[row]])[None]).logits[0, len(prompt) - 1 : -1]
            found.append((logits.log_softmax(dim=-1).gather(1, drawn[row][:, None])[:, 0] * mask[row]).sum())
        return torch.stack(found)

    before = log_probability()
    advantages = torch.tensor([[1.0], [-1.0]]) * mask
    found = lean.update(policy, optimiser, prompts, prompt_mask, drawn, mask, advantages, settings)
    after = log_probability()
    assert after[0] - after[1] > before[0] - before[1]
    assert 0 < found["actor/entropy"] <= math.log(policy.config.vocab_size)
    assert found["actor/grad_norm"] > 0


def test_rows_whose_prompt_is_too_long_are_left_out(small, model, monkeypatch):
    """As verl's data set does; kind: prompts that the pipeline never sees."""
    _, tokenizer = load(model)
    lengths = [len(lean.tokens_of(tokenizer, row)) for row in ROWS]
    seen = []
    monkeypatch.setattr(lean, "data_order", lambda rows, *_: seen.extend(rows) or iter([ROWS[:2]] * 2))
    limit = max(lengths) - 1
    list(lean.steps_of(replace(small, longest_prompt=limit), model, ROWS))
    assert 0 < len(seen) == sum(length <= limit for length in lengths) < len(ROWS)
    assert all(len(lean.tokens_of(tokenizer, row)) <= limit for row in seen)


def test_the_report_reads_what_a_training_writes(small, model, tmp_path):
    lean.train(small, model, ROWS, tmp_path / "saw_gdpo_seed1", "a command")
    run = read_run(tmp_path / "saw_gdpo_seed1")
    assert (run.method, run.seed, run.total_steps) == ("saw_gdpo", 1, 2)
    assert run.history.steps == (1, 2)
    assert run.history.objectives == ("format", "correctness")
    assert run.config["actor_rollout_ref.actor.optim.betas"] == [0.9, 0.999]
    assert run.info["ranges"] == {name: list(bounds) for name, bounds in lm.OBJECTIVES.items()}
    lm.write_steps([run], tmp_path / "steps.csv", lean_study.KEPT)
    (read,) = lm.read_steps(tmp_path / "steps.csv")["saw_gdpo"]
    assert read.history.of("correctness", "mean") == pytest.approx(run.history.of("correctness", "mean"))


def test_an_interrupted_training_leaves_no_metrics(small, model, tmp_path, monkeypatch):
    """Kind: half a training that counts as finished."""

    def interrupted(*_):
        yield {"saw/format/mean": 0.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(lean, "steps_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lean.train(small, model, ROWS, tmp_path / "run", "a command")
    assert not (tmp_path / "run" / LOG).exists()


def test_a_set_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Finished trainings are skipped, and all methods of a seed come before the next seed."""
    monkeypatch.setenv("SAW_RUNS", str(tmp_path))
    monkeypatch.setattr(lean_study, "run_all", lambda *_: None)
    monkeypatch.setattr(lean_study.pd, "read_parquet", lambda _: lean_study.pd.DataFrame(ROWS))
    done = tmp_path / "study_lean" / "saw_grpo_seed3"
    trained = []

    def train(settings, model, rows, folder, command):
        assert len(rows) == 64
        trained.append((settings.seed, settings.method))
        folder.mkdir(parents=True)
        (folder / LOG).write_text(json.dumps({"step": 1, "data": {"saw/a/mean": 0.0, "timing_s/step": 1.0}}) + "\n")

    done.mkdir(parents=True)
    (done / LOG).write_text("finished\n")
    monkeypatch.setattr(lean_study, "train", train)
    lean_study.main(["--seeds", "3,4", "--train-only"])
    assert trained == [(3, "grpo"), (3, "gdpo"), (3, "saw_gdpo")] + [(4, method) for method in lean_study.METHODS]


# ---------------------------------------------------------------- the report


@pytest.fixture
def two_methods(tmp_path):
    """SAW learns correctness eight steps sooner, and format as soon; the seeds are not in order."""
    late = {"grpo": 20, "saw_grpo": 12}
    return {name: [make_run(tmp_path, name, seed, step) for seed in (3, 1, 2, 5, 4)] for name, step in late.items()}


def noisy(run, spread: float):
    """The run with noise of its own in every step of correctness."""
    chance = random.Random(f"{run.folder.name} {spread}")
    columns = dict(run.history.columns)
    columns["saw/correctness/mean"] = tuple(
        value + chance.gauss(0, spread) for value in columns["saw/correctness/mean"]
    )
    return replace(run, history=replace(run.history, columns=columns))


def test_differences_are_of_the_same_seed(two_methods):
    """Kind: pairs by place in a list; a seed that only one of them has."""
    two_methods["saw_grpo"] = [noisy(run, 0.1) for run in two_methods["saw_grpo"] if run.seed != 4]
    last = {
        (name, run.seed): area_under_curve(run, "correctness") for name, runs in two_methods.items() for run in runs
    }
    found = lean_study.differences(two_methods, "saw_grpo", "correctness", AREA)
    assert found == [last["saw_grpo", seed] - last["grpo", seed] for seed in (1, 2, 3, 5)]


def test_a_difference_is_found_and_equal_curves_are_equivalent(two_methods):
    two_methods["saw_grpo"] = [noisy(run, 0.1) for run in two_methods["saw_grpo"]]
    found = lean_study.comparisons(two_methods)
    assert {method for method, *_ in found} == {"saw_grpo"}  # the other pair was not trained
    test, same = found["saw_grpo", "correctness", AREA]
    assert test.difference.mean > 0.5
    assert test.p < test.p_corrected < 0.01
    assert same > 0.9
    test, same = found["saw_grpo", "format", AREA]
    assert math.isnan(test.p)
    assert same == 0


def test_the_margin_is_a_share_of_each_objective_s_range(two_methods):
    """Kind: one margin for both; correctness' range is six times that of format."""
    for shift, is_same in ((0.1, True), (0.14, False)):
        moved = [shifted(noisy(run, 0.01), shift) for run in two_methods["grpo"]]
        _, same = lean_study.comparisons({**two_methods, "saw_grpo": moved})["saw_grpo", "correctness", AREA]
        assert (same < 0.05) == is_same


def shifted(run, by: float):
    columns = dict(run.history.columns)
    columns["saw/correctness/mean"] = tuple(value + by for value in columns["saw/correctness/mean"])
    return replace(run, history=replace(run.history, columns=columns))


def test_curves_of_another_shape_are_told_apart(two_methods, monkeypatch):
    """Also if their area is the same: the test is of the whole curve."""
    monkeypatch.setattr(lean_study, "DIVISIONS", 500)
    lean_runs = [noisy(run, 0.3) for run in two_methods["grpo"]]
    pipeline = [noisy(run, 0.31) for run in two_methods["grpo"]]
    assert lean_study.curve_distance(lean_runs, pipeline, "correctness")[1] > 0.05
    turned = []
    for run in pipeline:
        columns = dict(run.history.columns)
        columns["saw/correctness/mean"] = columns["saw/correctness/mean"][::-1]
        turned.append(replace(run, history=replace(run.history, columns=columns)))
    distance, p = lean_study.curve_distance(lean_runs, turned, "correctness")
    assert distance > 1
    assert p < 0.02


def test_both_trainers_are_compared_by_mean_and_spread():
    gap, low, high, p = lean_study.welch([1.0, 1.2, 1.1, 0.9], [2.0, 2.2, 1.8])
    assert gap == pytest.approx(-0.95)
    assert low < gap < high < 0
    assert p < 0.01


@pytest.fixture
def drawn(monkeypatch) -> dict[str, list[str]]:
    """The curves of each figure, which is not drawn."""
    found: dict[str, list[str]] = {}

    def plot(groups, rows, path, title):
        found[path.name] = list(groups)

    monkeypatch.setattr(lean_study.figures, "plot_family", plot)
    return found


def written(folder, groups):
    folder.mkdir()
    lm.write_steps([run for runs in groups.values() for run in runs], folder / "steps.csv", lean_study.KEPT)
    return folder


def test_the_report_has_its_tables(two_methods, tmp_path, drawn):
    two_methods["saw_grpo"] = [noisy(run, 0.1) for run in two_methods["saw_grpo"]]
    text = lean_study.report(written(tmp_path / "lean", two_methods))
    assert len(re.findall(r"^\| saw_grpo \| (format|correctness) \| (last 5|area)[^|]*\|", text, re.MULTILINE)) == 4
    assert "## CV as a signal" in text
    assert drawn == {name: ["grpo", "saw_grpo"] for name in ("rewards_grpo", "weights_grpo")}


def test_the_comparison_with_the_pipeline_has_every_measure(two_methods, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(lean_study, "DIVISIONS", 20)
    pipeline = {name: [noisy(run, 0.2) for run in runs[:3]] for name, runs in two_methods.items()}
    own = written(tmp_path / "lean", {"saw_grpo": [noisy(run, 0.1) for run in two_methods["saw_grpo"]]})
    text = lean_study.report_against(own, written(tmp_path / "pipeline", pipeline))
    for measure in ("step 1", "last 5 steps", AREA):
        assert re.search(rf"\| saw_grpo \| correctness \| {measure} \| .*n = 3\).*n = 5\)", text)
    assert "| saw_grpo | format |" in text.split("## Learning curves of both trainers")[1]
    assert "| grpo |" not in text
    assert drawn == {"trainers_saw_grpo": ["saw_grpo, pipeline", "saw_grpo, lean trainer"]}


def test_a_report_on_one_seed_is_refused(two_methods, tmp_path):
    with pytest.raises(SystemExit, match="one training of grpo; a report needs at least two seeds"):
        lean_study.report(written(tmp_path / "lean", {"grpo": two_methods["grpo"][:1]}))


def test_a_comparison_with_a_folder_that_is_no_study_is_refused(two_methods, tmp_path):
    own = written(tmp_path / "lean", {"saw_grpo": [noisy(run, 0.1) for run in two_methods["saw_grpo"]]})
    for first, second in ((own, tmp_path), (tmp_path, own)):
        with pytest.raises(SystemExit, match=re.escape(f"{tmp_path} has no steps.csv")):
            lean_study.report_against(first, second)


def test_a_comparison_that_would_say_nothing_is_refused(two_methods, tmp_path):
    """Kind: a page on the wrong trainings, or a traceback."""
    saw, plain = ({name: [noisy(run, 0.1) for run in runs]} for name, runs in reversed(two_methods.items()))
    first, second = written(tmp_path / "a", saw), written(tmp_path / "b", plain)
    with pytest.raises(SystemExit, match="no method in common"):
        lean_study.report_against(first, second)
    broken = {"empty": "", "another": "a,b\n1,2\n", "header": (first / "steps.csv").read_text().partition("\n")[0]}
    rows = (first / "steps.csv").read_text().splitlines()
    broken |= {
        "shorter": "\n".join(rows[:-1]),
        "twice": "\n".join([*rows, *(row.replace(",2,", ",1,") for row in rows)]),
    }
    for name, text in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "steps.csv").write_text(text)
        with pytest.raises(SystemExit, match=r"steps\.csv"):
            lean_study.report_against(first, tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--report-only", "data.seed=1"], "is a setting of a training"),
        (["--against", "elsewhere", "data.seed=1"], "is a setting of a training"),
        (["--against", "here", "--out", "./here"], "which is --out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, says, capsys):
    with pytest.raises(SystemExit):
        lean_study.main(arguments)
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_report_is_what_its_csv_gives(tmp_path):
    shutil.copy(STUDY / "steps.csv", tmp_path)
    assert (STUDY / "README.md").read_text().startswith(lean_study.report(tmp_path))


@pytest.mark.slow
def test_the_committed_comparison_of_the_trainers_is_what_its_csvs_give(tmp_path):
    shutil.copy(SAME_START / "steps.csv", tmp_path)
    assert (SAME_START / lean_study.AGAINST).read_text().startswith(lean_study.report_against(STUDY, tmp_path))


def test_the_committed_page_says_what_its_csvs_record():
    """Kind: the page named the machine on which it was written."""
    runs = [run for group in lm.read_steps(STUDY / "steps.csv").values() for run in group]
    assert (STUDY / "README.md").read_text().splitlines()[-1] == lean_study.origin(runs, runs[0].history.steps[-1])
