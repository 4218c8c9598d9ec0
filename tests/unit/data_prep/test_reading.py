"""What is said to come from the paper comes from it, and nobody is sent to a file that he does not have."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.configs import CONFIGS
from tests.conftest import ROOT

#: A value of a configuration and the letters of its source: ``key: value   # A (C), in words``.
LETTERED = re.compile(
    r"^\s*(?:- )?(?P<key>[\w /]+?): (?P<value>[^#]*?)\s*# (?P<letters>[PCNA](?: \([PCNA]\))?)(?=$|[,;:. ])"
)

#: Where the review of the paper shows a value that a configuration marks P; {} is the value.
SHOWN = {
    "experiment/tldr/base.yaml": {
        "train_batch_size": "Train Batch Size {}",
        "path": "Reddit TL;DR with {}",
        "total_epochs": "Total Epochs {}",
    },
    "judge/base.yaml": {"objectives": '{}": {{ "score": [Integer] }}'},
}
#: The same for the rows of docs/sources.md: what the review must hold.
SHOWN_IN_DOCS = {
    "GRPO, GDPO": ["both GRPO and GDPO"],
    "random, static weights": ["random-weighting", "static-weighting"],
    "MO-GRPO": ["Mo-grpo", "arXiv:2509.22047"],
    "model": ["Reddit TL;DR with Qwen2.5-1.5B-Instruct"],
    "data set": ["Michael Völske", "2017"],
    "objectives": ['quality": { "score"', '"conciseness": { "score"'],
    "scores": ['"score": [Integer]'],
    "rubric": ["Core Message", "Filler Words", "Penalize hallucinations heavily", "# Task Input", "# Output Format"],
    "duration": ["Total Epochs 11", "Train Batch Size 256"],
    "a value 2048": ["2048"],
}


def plain(text: str) -> str:
    """Line breaks and typographic quotes do not count."""
    return re.sub(r"\s+", " ", text.translate(str.maketrans("“”‘’", "\"\"''")))


def lettered(path: Path) -> list[tuple[str, str, str]]:
    found = (LETTERED.match(line) for line in path.read_text().splitlines())
    return [(match["key"], match["value"], match["letters"]) for match in found if match]


def rows_of_sources() -> list[tuple[str, str, str]]:
    """Section, first and last cell of every row of docs/sources.md's tables."""
    section, rows = "", []
    for line in (ROOT / "docs" / "sources.md").read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and section:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
            rows.append((section, cells[0], cells[-1]))
    return [row for row in rows if row[2] != "source"]


def test_a_letter_is_read_from_its_line():
    assert LETTERED.match("  max_prompt_length: 2048    # A (C); of what")["letters"] == "A (C)"
    assert LETTERED.match("  - override /judge: gemini  # N; judge=openai")["key"] == "override /judge"
    assert LETTERED.match("        extra_body: {a: none} # P: thinking off").groups() == (
        "extra_body",
        "{a: none}",
        "P",
    )
    assert not LETTERED.match("  free_cache_engine: false   # a CPU has no sleep mode")
    assert not LETTERED.match("  enable: true   # Python decides")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_value_marked_p_is_in_the_review(path, shared):
    """Kind: a value said to be the paper's that our copy of the paper's text does not show."""
    review = plain((shared / "paper" / "review.txt").read_text())
    evidence = SHOWN.get(str(path.relative_to(CONFIGS)), {})
    for key, value, letters in lettered(path):
        if letters.startswith("P") and key != "profile":  # the method's own equations: docs/sources.md, "The method"
            assert key in evidence, f"{path.name}: {key} is marked P; which words of the review show it?"
            parsed = yaml.safe_load(value)
            for item in parsed if isinstance(parsed, list) else [parsed]:
                words = evidence[key].format(str(item).removeprefix("Qwen/"))
                assert words in review, f"{path.name}: {key} is marked P, but the review has no {words!r}"


def test_a_row_of_the_sources_marked_p_is_in_the_review(shared):
    """Kind: as above, in docs/sources.md. The method's equations are the paper's own section, which it says."""
    review = plain((shared / "paper" / "review.txt").read_text())
    marked = [
        (section, name)
        for section, name, source in rows_of_sources()
        if re.search(r"\bP\b", source) and section != "The method"
    ]
    assert marked
    for section, name in marked:
        assert name in SHOWN_IN_DOCS, (
            f"docs/sources.md, {section}: {name} is marked P; which words of the review show it?"
        )
        for words in SHOWN_IN_DOCS[name]:
            assert words in review, f"docs/sources.md, {section}: {name} is marked P, but the review has no {words!r}"


def test_what_only_a_note_says_is_in_no_review(shared):
    """Kind: a fact marked N that the review shows would be P: the other direction."""
    review = plain((shared / "paper" / "review.txt").read_text())
    for words in ("emini-3", "temperature", "thinking off", "A100", "3B", "0 to 10", "33.53", "trl-lib"):
        assert words not in review
    unit = {key for path in CONFIGS.rglob("*.yaml") for key, _, letters in lettered(path) if letters == "N"}
    assert {"model", "lowest", "highest", "temperature", "extra_body", "path", "n_gpus_per_node"} <= unit


def test_every_row_of_the_sources_has_a_letter():
    rows = rows_of_sources()
    assert len(rows) > 30
    for section, name, source in rows:
        assert re.search(r"\b[PCNA]\b", source), f"docs/sources.md, {section}: {name} has no letter, but {source!r}"


def test_a_setting_taken_over_has_the_letter_and_value_of_its_run():
    """Kind: a letter that contradicts another file's: "A (C)" is C in the tool-calling run, with the same value."""
    tools = {key: (value, letters) for key, value, letters in lettered(CONFIGS / "experiment/toolrl/base.yaml")}
    for key, value, letters in lettered(CONFIGS / "experiment/tldr/base.yaml"):
        if letters.startswith("A ("):
            assert tools[key] == (value, letters[3])
        elif key in tools and tools[key][0] == value:
            assert letters == tools[key][1] == "A", f"{key} has the tool-calling run's value, and so its letter"


def test_what_the_release_does_is_marked_c():
    """Kind: a fact of the released code given as our assumption."""
    tools = {key: letters for key, _, letters in lettered(CONFIGS / "experiment/toolrl/base.yaml")}
    assert {tools[key] for key in ("do_sample", "val_before_train", "lr", "train_batch_size", "top_p")} == {"C"}
    assert tools["max_actor_ckpt_to_keep"] == "A"


#: Values of the tables' experiments that are no choice of the paper: where things lie, what they are called.
OURS = {
    *("train_files", "val_files", "project_name", "experiment_name", "default_local_dir", "logger", "resume_mode"),
    *("nnodes", "override /objectives", "override /kl", "/reading", "method"),
}


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("experiment/t*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_value_of_a_table_has_its_letter(path):
    """Kind: a value of the paper's experiments without a source."""
    have = {key for key, _, _ in lettered(path)}
    for line in path.read_text().splitlines():
        match = re.match(r"^\s*(?:- )?([\w /]+?): (?!\s*(?:#|$))\S", line)
        if match and not line.startswith("#") and match[1] not in OURS:
            assert match[1] in have, f"{path.name}: {match[1]} has no letter of its source"


# ------------------------------------------------------------------ what a reader can open

TEXT = {".py", ".md", ".yaml", ".yml", ".txt", ".sh", ".toml", ".html", ".tex", ""}
#: Names of files that are not in the repository; in tests, the fixture `shared` may open them.
ABSENT = re.compile(
    r"\bSPEC\b|\b(?:VERL|BFCL|STYLE)\.md\b|\.\./shared\b|/work/|(?<![\w/\"])(?:golden|prototypes|paper)/\w+\.(?:json|txt|md|py)"
)


def tracked() -> list[Path]:
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("no git checkout")
    return [
        ROOT / name for name in found.stdout.splitlines() if (ROOT / name).suffix in TEXT and (ROOT / name).is_file()
    ]


def test_an_absent_source_is_recognised():
    for cited in ("(SPEC, section 3)", "see SPEC.md", "``golden/advantages.json``", "../shared/paper", "VERL.md"):
        assert ABSENT.search(cited), cited
    for free in (
        "`special`",
        "inspect",
        "test_golden_advantages.py",
        "msgspec",
        '["spec"]',
        "shared memory",
        "BFCL v4",
    ):
        assert not ABSENT.search(free), free


def test_no_file_sends_a_reader_to_a_source_he_does_not_have():
    """Kind: a citation of a file outside of the repository."""
    cited = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path != Path(__file__).resolve() and path != ROOT / "tests" / "conftest.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if ABSENT.search(line)
    ]
    assert not cited, "\n".join(cited)


def test_every_relative_link_and_cited_document_is_there():
    """Kind: the neighbour, a link or a ``docs/NAME.md`` that leads nowhere."""
    broken = []
    for path in tracked():
        text = path.read_text()
        links = re.findall(r"\]\(([^)#\s]+)", text) if path.suffix == ".md" else []
        broken += [
            f"{path.relative_to(ROOT)}: {link}"
            for link in links
            if not re.match(r"\w+:", link) and not (path.parent / link).exists()
        ]
        if path.parts[-2] != "unit":
            broken += [
                f"{path.relative_to(ROOT)}: {name}"
                for name in re.findall(r"(?<![\w/.])docs/\w+\.md", text)
                if not (ROOT / name).exists()
            ]
    assert not broken, "\n".join(broken)
