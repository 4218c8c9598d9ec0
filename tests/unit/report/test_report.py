"""From logs to tables, figures, a page and a dashboard."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from saw.report import plot_curves, read_history, step_line, summary_table
from saw.report.__main__ import main
from saw.report.caveats import warnings_of
from saw.report.figures import family
from saw.report.history import differences, grouped, read_run
from saw.report.tables import latex
from tests.conftest import ROOT


def write_log(path, means):
    lines = [{"step": 0, "data": {"val-core/x": 1.0}}]  # validation before training: no training metrics
    for step, mean in enumerate(means, start=1):
        data = {f"saw/format/{what}": 0.25 for what in ("cv", "weight")} | {
            "saw/format/mean": mean,
            "timing_s/step": 2.0,
        }
        lines.append({"step": step, "data": data})
    path.write_text("".join(json.dumps(line).replace("NaN", "null") + "\n" for line in lines))
    return path


def test_table_has_first_last_and_best(tmp_path):
    history = read_history(write_log(tmp_path / "m.jsonl", [0.1, math.nan, 0.9, 0.5]))
    assert history.steps == (1, 2, 3, 4)
    assert history.objectives == ("format",)
    assert math.isnan(history.of("format", "mean")[1])
    assert summary_table({"grpo": history}).splitlines()[-1] == "| grpo | format | 0.100 | 0.500 | 0.900 | 3 |"


@pytest.mark.slow  # draws the figures
def test_curves_are_drawn(tmp_path):
    history = read_history(write_log(tmp_path / "m.jsonl", [0.1, 0.5]))
    plot_curves({"grpo": history, "saw_gdpo": history}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_step_line():
    line = step_line(7, {"saw/format/mean": 0.5, "saw/format/weight": 0.25, "timing_s/step": 3.0})
    assert line == "step   7  format  0.500 (weight 0.25)    3.0 s"
    assert step_line(7, {"saw/format/mean": 0.5}) == "step   7  format  0.500 (weight nan)    nan s"


def test_a_log_of_another_trainer_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "data": {"critic/score/mean": 1.0}}\n')
    with pytest.raises(ValueError, match="SAW's trainer"):
        read_history(tmp_path / "m.jsonl")


def make_run(folder: Path, method: str, seed: int, steps: int = 12, gain: float = 0.05, **more) -> Path:
    """A run of two objectives as the trainer leaves it."""
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            data = {"timing_s/step": 3.0, "timing_s/gen": 2.0, "timing_s/update_actor": 1.0, "actor/entropy": 1 / step}
            for objective, low, high in (("format", 0.0, 1.0), ("correctness", -3.0, 3.0)):
                mean = low + (high - low) * min(0.3 + gain * step + 0.01 * seed, 1.0)
                values = {"mean": mean, "std": 0.1, "min": low, "max": high, "cv": 0.2, "weight": 0.5} | {
                    "proposed_weight": 0.5,
                    "zero_spread": 0.25,
                    "missing": 0.0,
                }
                values |= more.get(objective, {})
                data |= {f"saw/{objective}/{what}": value for what, value in values.items()}
                data |= more.get("logged", {})
                if step % 4 == 0:
                    data[f"saw-val/{objective}/mean"] = mean
            file.write(json.dumps({"step": step, "data": data}) + "\n")
    config = {"saw": {"method": method, "options": {"ema": more.get("ema", 0.0)}}, "data": {"seed": seed}}
    config["data"]["train_batch_size"] = more.get("prompts", 32)
    config["actor_rollout_ref"] = {"rollout": {"n": 4}}
    config["trainer"] = {"experiment_name": folder.name, "default_local_dir": str(folder)}
    config["ray_kwargs"] = {"ray_init": {"runtime_env": {"env_vars": {"SAW_COMMAND": f"--seed {seed}"}}}}
    record = {
        "config": config,
        "ranges": {"format": [0.0, 1.0], "correctness": [-3.0, None]},
        "provenance": {"command": "python <&>", "commit": "abc", "machine": "m", "versions": "v"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    sample = {"step": 4, "input": "<b>ask", "output": "</script>", "rewards": {"format": 1.0, "correctness": None}}
    (folder / "val_samples.jsonl").write_text(json.dumps(sample) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for seed in (1, 2, 3):
        make_run(root / f"grpo_{seed}", "grpo", seed)
        make_run(root / f"saw_grpo_{seed}", "saw_grpo", seed, gain=0.05 + 0.001 * seed)
    make_run(root / "saw_gdpo_1", "saw_gdpo", 1, ema=0.5)
    return root


def test_runs_are_grouped_by_what_differs_but_the_seed(runs):
    found = [read_run(folder) for folder in sorted(runs.iterdir())]
    assert differences(found) == {"saw.options.ema": [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0]}
    assert {label: len(group) for label, group in grouped(found).items()} == {
        "grpo, ema=0.0": 3,
        "saw_gdpo, ema=0.5": 1,
        "saw_grpo, ema=0.0": 3,
    }
    assert grouped(found[:3]).keys() == {"grpo"}


@pytest.mark.slow  # draws the figures
def test_a_report_has_its_tables_figures_and_page(runs, tmp_path, capsys):
    chosen = [str(path) for path in sorted(runs.iterdir()) if path.name != "saw_gdpo_1"]
    out = tmp_path / "report"
    main([*chosen, "--out", str(out), "--baseline", "grpo", "--threshold", "format=0.6", "--title", "a <title>"])
    printed = capsys.readouterr().out
    assert "| grpo | format | 0.820" in printed  # mean over steps 8 to 12 and seeds 1 to 3
    assert "(n = 3)" in printed
    assert "median 7 (3 of 3)" in printed  # (0.3 + 0.05 * 6 + 0.01 * seed) at the middle of the window
    assert "| saw_grpo | format | last 5 steps | 0.020" in printed
    assert "| saw_grpo | yes |" in printed
    assert "| saw_grpo | format | area under the curve, per step | " in printed
    for name in ("rewards_grpo_based", "weights_grpo_based", "cost"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (out / "rewards.tex").read_text().startswith(r"\begin{tabular}{llrrr}")
    page = (out / "index.html").read_text()
    assert "a &lt;title&gt;" in page
    assert "&lt;b&gt;ask" in page
    assert "<b>ask" not in page
    assert "python &lt;&amp;&gt;" in page
    own = page.replace(get_plotlyjs(), "")
    assert "http" not in own
    assert "<script src" not in own
    charts = charts_of(own)
    assert [bool(chart.data) for chart in charts] == [True] * own.count("plotly-graph-div")
    assert {trace.type for chart in charts for trace in chart.data} == {"scatter", "bar"}
    assert all(len(chart.layout.template.layout.colorway) == 10 for chart in charts)


def charts_of(page: str) -> list[go.Figure]:
    """The charts of a page, whose names and values plotly checks: plotly.js passes over what it does not know."""
    decode, charts = json.JSONDecoder().raw_decode, []
    for place in (found.end() for found in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', page)):
        data, end = decode(page, place)
        charts.append(go.Figure(data, decode(page, page.index("{", end))[0]))
    return charts


@pytest.mark.slow  # draws the figures
def test_a_reward_that_is_always_0_is_drawn(tmp_path):
    never = make_run(tmp_path / "run", "grpo", 1, format={"mean": 0.0, "missing": 0.0})
    main([str(never), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "format: mean reward" in page
    assert "format: missing rewards" not in page


def test_a_baseline_that_is_not_there_is_named(runs, tmp_path):
    with pytest.raises(SystemExit, match="--baseline dvao: no such method; there are grpo"):
        main([str(runs / "grpo_1"), "--out", str(tmp_path / "r"), "--baseline", "dvao"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "expected the folder of a training"),
        ([".", "--threshold", "format"], "expected OBJECTIVE=VALUE"),
        ([".", "--threshold", "format=0_9"], "expected OBJECTIVE=VALUE"),
        ([".", "--threshold", "format=inf"], "expected OBJECTIVE=VALUE"),
        ([".", "--threshold", "a=0.5", "--threshold", "a=0.7"], "--threshold has two values for a"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- which runs count


def summary_of(out: Path, *arguments: object) -> str:
    """The text of a report; without figures, which take their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saw.report.figures.draw_all", lambda groups, folder: [])
        main([*map(str, arguments), "--out", str(out)])
    return (out / "summary.md").read_text()


def rewards(text: str) -> dict[str, str]:
    """Method -> cell of format's mean reward in the first table."""
    rows = [line.split(" | ") for line in text.splitlines() if " | format | " in line and "| method " not in line]
    return {row[0].strip("| "): row[2] for row in reversed(rows)}  # a row of the first table wins


@pytest.fixture
def pair(tmp_path):
    return [make_run(tmp_path / "runs" / f"grpo_{seed}", "grpo", seed) for seed in (1, 2)]


@pytest.mark.parametrize(
    "how", ["twice", "file", "folder above", "link", "part", "copy", "start of it", "copy of copies"]
)
def test_a_run_counts_once_however_it_is_given(pair, tmp_path, how):
    """Kind: one training is counted as several seeds."""
    extra = {
        "twice": [pair[0]],
        "file": [pair[0] / "metrics.jsonl"],
        "folder above": [tmp_path / "runs"],
        "link": [tmp_path / "link"],
        "part": [pair[0] / "metrics.1.jsonl"],
    }.get(how, [tmp_path / "more" / "grpo_1", tmp_path / "more" / "again"])
    if how == "link":
        extra[0].symlink_to(pair[0])
    elif how == "part":
        shutil.copy(pair[0] / "metrics.jsonl", pair[0] / "metrics.1.jsonl")
    elif len(extra) == 2:
        for folder in extra:
            shutil.copytree(pair[0], folder)
            if how == "start of it":
                lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
                (folder / "metrics.jsonl").write_text("".join(lines[:7]))
    text = summary_of(tmp_path / "report", *pair, *extra, *extra)
    plain = summary_of(tmp_path / "plain", *pair)
    assert rewards(text) == rewards(plain)
    assert "(n = 2)" in rewards(text)["grpo"]
    if len(extra) == 2:
        assert "**more/grpo_1: a copy of runs/grpo_1 by its metrics and seed; it is left out.**" in text
        assert "**again: a copy of runs/grpo_1" in text
        assert "a copy of runs/grpo_1" in (tmp_path / "report" / "index.html").read_text()


def test_methods_with_equal_numbers_are_no_copies(tmp_path):
    for method in ("grpo", "saw_grpo"):
        make_run(tmp_path / "runs" / method, method, 1)
    text = summary_of(tmp_path / "report", tmp_path / "runs")
    assert "copy" not in text
    assert "| grpo | yes |" in text
    assert "| saw_grpo | yes |" in text  # equally good: both are on the front


def test_a_seed_that_was_trained_twice_is_one_seed(tmp_path):
    """Kind: n counts folders instead of seeds, or a test uses only the last training of a seed."""
    for name, method, seed, high in (
        *(("a", "grpo", 1, 0.2), ("b", "grpo", 1, 0.4), ("c", "grpo", 2, 0.5)),
        *(("d", "saw_grpo", 1, 0.5), ("e", "saw_grpo", 2, 0.8), ("f", "saw_grpo", 2, 0.9)),
    ):
        make_run(tmp_path / "runs" / name, method, seed, format={"mean": high})
    text = summary_of(tmp_path / "report", tmp_path / "runs", "--baseline", "grpo", "--threshold", "format=0.25")
    assert rewards(text)["grpo"].startswith("0.400 [")  # (0.3 + 0.5) / 2, by seed; by training it were 0.367
    assert rewards(text)["grpo"].endswith("(n = 2)")
    gap = next(line for line in text.splitlines() if "| saw_grpo | format | last 5 steps |" in line)
    assert "| 0.275 [" in gap  # (0.5 - 0.3 and 0.85 - 0.5) / 2
    assert "median inf" not in text
    assert "a and b have the same seed, 1; their mean counts as one" in text
    front = next(line for line in text.splitlines() if line.startswith("| grpo | no |"))
    assert front.split(" | ")[2] == "0.400"
    assert front.endswith("| 2 |")


def test_only_seeds_that_both_have_are_paired(tmp_path):
    for method, seed, mean in (
        *(("grpo", 1, 0.2), ("grpo", 2, 0.4), ("grpo", 4, 0.9)),
        *(("saw_grpo", 1, 0.3), ("saw_grpo", 2, 0.6), ("saw_grpo", 3, 0.0)),
    ):
        make_run(tmp_path / "runs" / f"{method}_{seed}", method, seed, format={"mean": mean})
    text = summary_of(tmp_path / "report", tmp_path / "runs", "--baseline", "grpo")
    assert "| saw_grpo | format | last 5 steps | 0.150 [0.100, 0.200] (n = 2) |" in text


def test_runs_of_which_nobody_knows_the_seed_are_runs(tmp_path):
    for name, mean in (("a", 0.2), ("b", 0.4)):
        folder = make_run(tmp_path / "runs" / name / "grpo", "grpo", 1, format={"mean": mean})
        (folder / "run.json").unlink()
    assert rewards(summary_of(tmp_path / "report", tmp_path / "runs"))["grpo"].endswith("(n = 2)")


def test_a_run_that_ended_early_is_left_out_and_named(tmp_path):
    """Kind: the last steps of a run that died are averaged with those of runs that continued."""
    for seed, steps in ((1, 20), (2, 20), (3, 4)):
        folder = make_run(tmp_path / "runs" / f"grpo_{seed}", "grpo", seed, steps=steps, gain=0.01)
        record = json.loads((folder / "run.json").read_text()) | {"total_steps": 20}
        (folder / "run.json").write_text(json.dumps(record))
    text = summary_of(tmp_path / "report", tmp_path / "runs", "--threshold", "format=0.4")
    assert rewards(text)["grpo"].startswith("0.495 [")  # 0.3 + 0.01 * 18 + 0.015
    assert "(n = 2)" in rewards(text)["grpo"]
    assert "(2 of 2)" in text
    assert "grpo_3: ended at step 4 of 20; it is left out" in text
    page = (tmp_path / "report" / "index.html").read_text()
    assert "ended at step 4 of 20" in page
    assert "Samples of grpo_3" in page


@pytest.mark.parametrize("total", [20, None])
def test_a_method_whose_runs_all_ended_early_is_shown_and_marked(tmp_path, total):
    """With the planned number of steps, or without it: then the other method's last step counts."""
    for method, steps in (("grpo", 4), ("saw_grpo", 20)):
        for seed in (1, 2):
            folder = make_run(tmp_path / "runs" / f"{method}_{seed}", method, seed, steps=steps)
            if total:
                record = json.loads((folder / "run.json").read_text()) | {"total_steps": total}
                (folder / "run.json").write_text(json.dumps(record))
    text = summary_of(tmp_path / "report", tmp_path / "runs", "--baseline", "grpo")
    assert "(n = 2)" in rewards(text)["grpo"]
    assert text.count("grpo at step 4 of 20.") == 3  # under each table
    assert ("grpo_1: ended at step 4 of 20" in text) == bool(total)


def test_a_run_without_a_step_is_named_and_the_others_reported(pair, tmp_path):
    """Kind: one folder without metrics prevents the report of all."""
    empty = {
        "not_begun": "",
        "validated_only": '{"step": 0, "data": {"val-core/x": 1.0, "saw-val/format/mean": 0.5}}\n',
        "cut": '{"step": 1, "da',
        "another_s": '{"step": 1, "data": {"critic/score/mean": 1.0}}\n',
    }
    for name, content in empty.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "metrics.jsonl").write_text(content)
    text = summary_of(tmp_path / "report", tmp_path / "runs")
    assert rewards(text) == rewards(summary_of(tmp_path / "plain", *pair))
    for name in empty:
        assert f"runs/{name}: left out" in text
        assert f"runs/{name}" in (tmp_path / "report" / "index.html").read_text()


def test_without_any_step_there_is_no_report(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "report")])
    assert "metrics.jsonl: it is empty" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], ["has no metrics.jsonl", "trainer.default_local_dir"]),
        (["grpo.jsonl", "summary.md"], ["has no metrics.jsonl", "grpo.jsonl"]),  # as results/quickstart
        (None, ["does not exist", "trainer.default_local_dir"]),
    ],
)
def test_a_folder_that_is_no_training_s_is_told_which_is(tmp_path, capsys, files, words):
    folder = tmp_path / "runs"
    if files is not None:
        folder.mkdir()
    for name in files or ():
        (folder / name).touch()
    with pytest.raises(SystemExit):
        main([str(folder)])
    error = capsys.readouterr().err
    for word in [str(folder), *words]:
        assert word in error
    assert "summary.md" not in error


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1, "da\n{"step": 2, "data": {}}\n', "metrics.jsonl, line 1: not valid JSON"),
        ("metrics.1.jsonl", '{"step": 1, "da\n{"step": 2, "data": {}}\n', "metrics.1.jsonl, line 1: not valid JSON"),
        ("run.json", '{"config": {"saw"', "run.json: not valid JSON"),
        ("run.json", "[]", "run.json: run.json is '[]'; expected an object"),
        ("run.json", '{"config": null}', "run.json: config is 'None'"),
        ("run.json", '{"ranges": [1]}', "run.json: ranges is '[1]'"),
        ("run.json", '{"total_steps": "20"}', "run.json: total_steps is '20'"),
    ],
)
def test_a_broken_file_is_named(pair, tmp_path, capsys, file, content, message):
    """Kind: a fault in one of many runs is reported without its file."""
    (pair[1] / file).write_text(content)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    assert f"{pair[1]}/{message}" in capsys.readouterr().err


def test_a_training_of_which_only_parts_are_left_is_read(pair, tmp_path):
    """As after a start that was killed before it logged; by its folder, the one above, or the part."""
    before = rewards(summary_of(tmp_path / "report", *pair))
    (pair[0] / "metrics.jsonl").rename(pair[0] / "metrics.2.jsonl")
    for given in ([pair[0], pair[1]], [tmp_path / "runs"], [pair[0] / "metrics.2.jsonl", pair[1]]):
        assert rewards(summary_of(tmp_path / "report", *given)) == before


def test_a_user_s_own_files_are_no_trainings(pair, tmp_path):
    """Kind: a name that looks like a log is taken for one."""
    for name in ("metrics.old.jsonl", "metrics.old.2.jsonl", "metrics.notes.txt"):
        (tmp_path / "runs" / "notes").mkdir(exist_ok=True)
        (tmp_path / "runs" / "notes" / name).write_text("mine")
        (pair[0] / name).write_text("mine")
    assert "(n = 2)" in rewards(summary_of(tmp_path / "report", tmp_path / "runs"))["grpo"]


def test_logs_in_one_folder_are_two_trainings(tmp_path):
    """Kind: several logs in one folder are taken for one training. results/quickstart has such logs."""
    folder = make_run(tmp_path / "run", "grpo", 1, format={"mean": 0.2})
    (folder / "run.json").unlink()
    (folder / "metrics.jsonl").rename(folder / "grpo.jsonl")
    other = make_run(tmp_path / "other", "gdpo", 1, format={"mean": 0.6})
    (other / "metrics.jsonl").rename(folder / "saw_gdpo.jsonl")
    text = summary_of(tmp_path / "report", folder / "grpo.jsonl", folder / "saw_gdpo.jsonl")
    assert rewards(text) == {"grpo": "0.200 (n = 1)", "saw_gdpo": "0.600 (n = 1)"}


def test_folders_of_one_name_keep_their_samples_warnings_and_origin(tmp_path):
    """Kind: runs are kept by the last part of their path, so that one overwrites another."""
    for place in ("a/x", "b/x", "b/y"):
        folder = make_run(tmp_path / place / "run", f"grpo_{place[0]}", 1, format={"max": 2.0})
        sample = {"step": 4, "input": f"asked in {place}", "output": "o", "rewards": {"format": 1.0}}
        (folder / "val_samples.jsonl").write_text(json.dumps(sample) + "\n")
        record = json.loads((folder / "run.json").read_text())
        record["provenance"]["commit"] = f"commit of {place}"
        (folder / "run.json").write_text(json.dumps(record | {"config": record["config"] | {"place": place}}))
    text = summary_of(tmp_path / "report", tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    for place in ("a/x", "b/x", "b/y"):
        assert f"asked in {place}" in page
        assert f"commit of {place}" in page
        name = "y/run" if place == "b/y" else f"{place}/run"
        assert f"Samples of {name}" in page
        assert f"**{name}: format was above" in text


def test_a_run_without_a_record_makes_no_setting_differ(pair, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(pair[0] / "metrics.jsonl", tmp_path / "other")
    found = [read_run(folder) for folder in (*pair, tmp_path / "other")]
    assert differences(found) == {}
    assert grouped(found).keys() == {"grpo", "other"}


@pytest.mark.parametrize("thresholds", [["formt=0.9"], ["format=0.9", "correctnes=1"], ["=0.9"], ["Format=0.9"]])
def test_a_misspelt_threshold_is_refused(pair, tmp_path, thresholds, capsys):
    """Kind: an unknown name gives an empty column."""
    with pytest.raises(SystemExit) as refusal:
        summary_of(tmp_path / "report", *pair, *(part for text in thresholds for part in ("--threshold", text)))
    said = f"{refusal.value}{capsys.readouterr().err}"
    assert thresholds[-1].partition("=")[0] in said
    assert "there are format, correctness" in said or "expected OBJECTIVE=VALUE" in said
    assert not (tmp_path / "report").exists()


def test_a_baseline_without_another_method_is_refused(pair, tmp_path):
    with pytest.raises(SystemExit, match="no other method to compare"):
        summary_of(tmp_path / "report", *pair, "--baseline", "grpo")


def test_a_method_that_is_not_on_the_front_s_list_is_named(tmp_path):
    make_run(tmp_path / "runs" / "a", "grpo", 1)
    make_run(tmp_path / "runs" / "b", "gdpo", 1, correctness={"mean": None})
    assert "Without a final reward of every objective: gdpo." in summary_of(tmp_path / "report", tmp_path / "runs")


SAMPLE = {"step": 4, "input": "a question", "output": "an answer", "rewards": {"format": 1.0}}


@pytest.mark.parametrize(
    ("after", "broken"),
    [
        ('{"step": 8, "inp', None),  # a last line that was cut off is no fault
        ('{"step": 8, "input": "é'.encode()[:-1], None),
        ('{"step": 8, "inp' + json.dumps(SAMPLE) + "\n", "1 lines, first 2"),  # cut off, and gone on with
        ("[]\n7\n", "2 lines, first 2"),
        ('{"step": 8}\n', "1 lines, first 2"),
        (json.dumps(SAMPLE | {"rewards": {"format": "high"}}) + "\n", "1 lines, first 2"),
        (json.dumps(SAMPLE | {"rewards": None}) + "\n", "1 lines, first 2"),
        (json.dumps(SAMPLE | {"input": ["a", "b"]}) + "\n", "1 lines, first 2"),
        ("\n" + json.dumps(SAMPLE | {"output": "\ud800 half a pair"}) + "\n", None),
    ],
)
def test_samples_that_cannot_be_read_are_counted(pair, tmp_path, after, broken):
    """Kind: one unfinished line makes the whole report fail."""
    file = pair[0] / "val_samples.jsonl"
    file.write_bytes((json.dumps(SAMPLE) + "\n").encode() + (after if isinstance(after, bytes) else after.encode()))
    text = summary_of(tmp_path / "report", *pair)
    assert "a question" in (tmp_path / "report" / "index.html").read_text()
    assert ("val_samples.jsonl" in text) == bool(broken)
    assert not broken or f"val_samples.jsonl has no sample in {broken}" in text


def test_a_sample_may_hold_what_other_readers_split_at(pair, tmp_path):
    """Kind: JSON lines are split inside a line."""
    odd = "one\u2028two\u2029three\u0085four"
    line = json.dumps(SAMPLE | {"output": odd}, ensure_ascii=False)
    (pair[0] / "val_samples.jsonl").write_text(line + "\r\n" + line + "\n", encoding="utf-8")
    assert [sample["output"] for sample in read_run(pair[0]).samples()] == [odd, odd]
    assert "val_samples" not in summary_of(tmp_path / "report", *pair)


def test_warnings(tmp_path):
    stuck = make_run(tmp_path / "a", "saw_grpo", 1, format={"weight": 0.995}, correctness={"weight": 0.005})
    found = warnings_of(read_run(stuck))
    assert "the weight of format is at 1 for 12 steps in a row (1 to 12)" in found
    assert "the weight of correctness is at 0 for 12 steps in a row (1 to 12)" in found
    assert warnings_of(read_run(make_run(tmp_path / "b", "grpo", 1))) == []
    (text,) = warnings_of(read_run(make_run(tmp_path / "g", "grpo", 1, format={"zero_spread": 1.0})))
    assert text == "no group had spread in format for 12 steps in a row (1 to 12): nothing is learned from it"
    outside = make_run(tmp_path / "c", "grpo", 1, format={"max": 1.5}, correctness={"min": -4.0, "max": 99.0})
    assert warnings_of(read_run(outside)) == [
        "format was above its stated maximum 1, first at step 1",
        "correctness was below its stated minimum -3, first at step 1",
    ]
    small = make_run(tmp_path / "d", "saw_grpo", 1, prompts=2, format={"mean": None}, correctness={"cv": 1.0})
    found = warnings_of(read_run(small))
    assert "format is missing for every sample of every step" in found
    assert any("the CV of correctness is uncertain by 44% or more with 8 samples" in text for text in found)
    differ = "training/rollout_probs_diff_mean"
    assert warnings_of(read_run(make_run(tmp_path / "e", "grpo", 1, logged={differ: 0.01}))) == []
    (text,) = warnings_of(read_run(make_run(tmp_path / "f", "grpo", 1, logged={differ: 0.2})))
    assert "by more than 0.05 on average in 12 steps, first 1: vLLM may not have the trainer's weights" in text


def test_families():
    assert [family(name) for name in ("grpo", "saw_gdpo", "mo_grpo", "dvao")] == [
        "GRPO-based",
        "GDPO-based",
        "GRPO-based",
        "other",
    ]


def test_latex():
    text = latex(["method", "100 %"], [["saw_grpo", "1 ± 2"]], left=1)
    assert "method & 100 \\% \\\\" in text
    assert "saw\\_grpo & 1 $\\pm$ 2 \\\\" in text
    assert text.startswith("\\begin{tabular}{lr}\n\\toprule\n")
    assert "a\\textbackslash \\space \\{\\} \\# $-$1" in latex(["a"], [["a\\ {} # −1"]], left=1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium; scripts/setup.sh --dev installs it as root")
def test_the_page_draws_itself_in_a_browser_without_a_network(runs, tmp_path):
    out = tmp_path / "report"
    main([str(runs), "--out", str(out)])
    for size in ("1200,2400", "390,2400"):  # a desk and a phone
        browser = [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--window-size={size}", "--virtual-time-budget=20000", "--dump-dom", (out / "index.html").as_uri()),
        ]
        drawn = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=True).stdout
        # drawn by the page's own script: each chart becomes an svg
        assert drawn.count('class="main-svg"') > 2 * 10


# ---------------------------------------------------------------- what is in results/


#: What is beside every measured number.
SOURCES = {
    "command": r"bash scripts/\w+\.sh",
    "commit": r"commit [0-9a-f]{7}\b|commits in steps\.csv",
    "machine": r"\d+ cores|\d+ x NVIDIA",
    "seeds": r"\bseeds?\b",
}
MEASURED = sorted(
    path
    for path in (ROOT / "results").glob("*/**/*.md")
    if "| not run |" not in path.read_text()  # a table that waits for its first run
)


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.relative_to(ROOT / "results").as_posix())
def test_every_result_says_where_it_comes_from(path):
    text = path.read_text()
    for what, pattern in SOURCES.items():
        assert re.search(pattern, text), f"it names no {what}"
    assert "-dirty" not in text, "nobody can check out what it was measured with"


def test_every_folder_of_results_has_a_page():
    folders = {path.relative_to(ROOT / "results").parts[0] for path in (ROOT / "results").glob("*/**/*.md")}
    assert folders == {path.name for path in (ROOT / "results").iterdir() if path.is_dir()}


@pytest.mark.parametrize("table", [1, 2])
def test_the_paper_s_tables_are_what_the_files_give(table, tmp_path):
    from recipes.tldr.table import TABLE as SECOND
    from recipes.toolrl.table import TABLE as FIRST

    (FIRST if table == 1 else SECOND).write(tmp_path / "no runs yet", tmp_path)
    for ending in ("md", "csv", "tex"):
        name = f"table{table}.{ending}"
        assert (tmp_path / name).read_text() == (ROOT / "results" / f"table{table}" / name).read_text()
