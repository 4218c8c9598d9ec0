"""From logs to tables, figures, a page and a dashboard."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from saw.report import plot_curves, read_history, step_line, summary_table
from saw.report.__main__ import main
from saw.report.figures import family
from saw.report.history import differences, grouped, read_run
from saw.report.tables import latex, latex_of, markdown
from saw.report.warnings import warnings_of
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


def test_curves_are_drawn(tmp_path):
    history = read_history(write_log(tmp_path / "m.jsonl", [0.1, 0.5]))
    plot_curves({"grpo": history, "saw_gdpo": history}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_step_line():
    line = step_line(7, {"saw/format/mean": 0.5, "saw/format/weight": 0.25, "timing_s/step": 3.0})
    assert line == "step   7  format  0.500 (weight 0.25)    3.0 s"


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
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_warnings(tmp_path):
    stuck = make_run(tmp_path / "a", "saw_grpo", 1, format={"weight": 0.995}, correctness={"weight": 0.005})
    found = warnings_of(read_run(stuck))
    assert "the weight of format is at 1 for 12 steps in a row (1 to 12)" in found
    assert "the weight of correctness is at 0 for 12 steps in a row (1 to 12)" in found
    assert warnings_of(read_run(make_run(tmp_path / "b", "grpo", 1))) == []
    (text,) = warnings_of(read_run(make_run(tmp_path / "g", "grpo", 1, format={"zero_spread": 1.0})))
    assert text == "no group had spread in format for 12 steps in a row (1 to 12): it teaches nothing"
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
    assert "by more than 0.05 on average in 12 steps, first 1: it may not have the trainer's weights" in text


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
    table = markdown(["a", "b"], [["x", "1"]], left=1)
    assert latex_of(f"# title\n\n{table}\n\nnote") == latex(["a", "b"], [["x", "1"]], left=1)


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


# ---------------------------------------------------------------- what stands in results/


#: What stands beside every measured number.
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
    from recipes.tldr.table import write_table as write_second
    from recipes.toolrl.table import write_table as write_first

    (write_first if table == 1 else write_second)(tmp_path / "no runs yet", tmp_path)
    for ending in ("md", "csv", "tex"):
        name = f"table{table}.{ending}"
        assert (tmp_path / name).read_text() == (ROOT / "results" / f"table{table}" / name).read_text()


def test_the_quickstart_s_table_is_what_its_logs_give():
    folder = ROOT / "results" / "quickstart"
    histories = {name: read_history(folder / f"{name}.jsonl") for name in ("grpo", "saw_gdpo")}
    table = summary_table(histories)
    assert table in (folder / "summary.md").read_text()
    assert table in (ROOT / "README.md").read_text()
