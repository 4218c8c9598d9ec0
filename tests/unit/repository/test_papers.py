"""docs/papers.md has an entry for everything, facts carry the letter of their source, and citations resolve."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from saw.method.profiles import PROFILES, Profile
from saw.method.registry import MEASURES, METHODS
from saw.method.smoothing import SMOOTHING
from tests.configs import CONFIGS
from tests.conftest import ROOT

#: A value of a configuration and the letters of its source: ``key: value   # A (C), in words``.
LETTERED = re.compile(
    r"^\s*(?:- )?(?P<key>[\w /]+?): (?P<value>[^#]*?)\s*# (?P<letters>[PCNA](?: \([PCNA]\))?)(?=$|[,;:. ])"
)

#: Where the review of the paper shows a value that a configuration marks P; {} is the value.
SHOWN = {
    "experiment/tldr.yaml": {
        "train_batch_size": "Train Batch Size {}",
        "path": "Reddit TL;DR with {}",
        "total_epochs": "Total Epochs {}",
    },
    "objectives/tldr.yaml": {"objectives": '"{}": {{ "score": [Integer]'},
}
PAPERS = (ROOT / "docs" / "papers.md").read_text()


def quotes() -> dict[str, list[str]]:
    """The words of the review that docs/papers.md quotes, by the row that they prove."""
    lines = re.findall(r"^- ([\w ]+): (`.*`)$", PAPERS.partition("in its words:")[2], re.M)
    return {row: re.findall(r"`([^`]+)`", words) for row, words in lines}


def lettered(path: Path) -> list[tuple[str, str, str]]:
    found = (LETTERED.match(line) for line in path.read_text().splitlines())
    return [(match["key"], match["value"], match["letters"]) for match in found if match]


def rows_of_facts() -> list[tuple[str, str, str, str]]:
    """Section, first, second and last cell of every row of docs/papers.md's tables that end with a source."""
    section, with_source, rows = "", False, []
    for line in PAPERS.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
            with_source = with_source or cells[-1] == "source"
            if with_source and cells[-1] != "source" and section:
                rows.append((section, cells[0], cells[1], cells[-1]))
        elif not line.startswith("|"):
            with_source = False
    return rows


def entries() -> dict[str, str]:
    """The method entries of docs/papers.md: each heading's names, and the text below it."""
    methods = PAPERS.partition("\n## Methods\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^### (.*)\n((?:(?!###).*\n)*)", methods, re.M))


def test_every_method_has_one_complete_entry():
    """Kind: a method, measure or option that is added and has no entry, or an entry without its setting or test."""
    named = [name for heading in entries() for name in re.findall(r"`(\w+)`", heading)]
    assert sorted(named) == sorted(METHODS)
    for heading, text in entries().items():
        parts = re.findall(r"^- \*\*(\w+):\*\*", text, re.M)
        assert parts == ["Paper", "Equation", "Code", "Setting", "Caveat", "Test"], heading
        for name in re.findall(r"`(\w+)`", heading):
            compute = METHODS[name].weighting.compute
            assert f"`{compute.__module__.rpartition('.')[2]}.{compute.__name__}`" in text, heading


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("Aggregations", {method.aggregation.combine.__name__ for method in METHODS.values()}),
        ("Measures", MEASURES),
        ("Smoothing", [f"saw.options.{name}" for name in (*SMOOTHING, "log_only")]),
        ("Profiles", Profile.model_fields),
    ],
)
def test_every_part_of_a_method_has_one_row(section, names):
    text = PAPERS.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w.]+)`", text, re.M)) == sorted(names)


def test_the_table_of_profiles_has_their_constants():
    text = PAPERS.partition("\n## Profiles\n")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.M)]
    assert rows[0][1:] == list(PROFILES)
    for constant, *cells in rows[2:]:
        assert cells == [str(getattr(profile, constant)) for profile in PROFILES.values()], constant


def test_every_cited_test_is_there():
    cited = re.findall(r"((?:`test_\w+`(?:, | and )?)+) in\s+\[[\w.]+\]\(\.\./(tests/[\w/.]+)\)", PAPERS)
    assert len(cited) > 5
    for names, file in cited:
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in (ROOT / file).read_text(), f"docs/papers.md: {file} has no {name}"


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
def test_a_value_marked_p_is_quoted_from_the_review(path):
    """Kind: a value is marked as the paper's, but no part of the paper that we have shows it."""
    review = [words for row in quotes().values() for words in row]
    evidence = SHOWN.get(str(path.relative_to(CONFIGS)), {})
    for key, value, letters in lettered(path):
        if letters.startswith("P") and key != "profile":  # the method's own equations
            assert key in evidence, f"{path.name}: {key} is marked P; which words of the review show it?"
            parsed = yaml.safe_load(value)
            for item in parsed if isinstance(parsed, list) else [parsed]:
                words = evidence[key].format(str(item).removeprefix("Qwen/"))
                assert words in review, f"{path.name}: {key} is marked P, but docs/papers.md does not quote {words!r}"


def test_a_fact_marked_p_is_quoted_with_its_figures():
    """Kind: as above, in docs/papers.md; or a quotation whose numbers differ from its row's."""
    marked = {name: value for _, name, value, source in rows_of_facts() if re.search(r"\bP\b", f"{source} {value}")}
    assert set(quotes()) == set(marked)
    for name, words in quotes().items():
        for figure in re.findall(r"\b\d{2,}\b", " ".join(words)):
            assert figure in re.findall(r"\d+", f"{name} {marked[name]}"), (
                f"docs/papers.md: {name} is quoted with {figure}"
            )


def test_the_note_s_values_are_marked_n():
    unit = {key for path in CONFIGS.rglob("*.yaml") for key, _, letters in lettered(path) if letters == "N"}
    assert {"model", "lowest", "highest", "temperature", "extra_body", "path", "n_gpus_per_node"} <= unit


def test_every_fact_has_a_letter():
    rows = rows_of_facts()
    assert len(rows) > 20
    for section, name, _, source in rows:
        assert re.search(r"\b[PCNA]\b", source), f"docs/papers.md, {section}: {name} has no letter, but {source!r}"


def test_a_setting_taken_over_has_the_letter_and_value_of_its_run():
    """Kind: a letter that contradicts another file's: "A (C)" is C in the tool-calling run, with the same value."""
    tools = {key: (value, letters) for key, value, letters in lettered(CONFIGS / "experiment/toolrl.yaml")}
    for key, value, letters in lettered(CONFIGS / "experiment/tldr.yaml"):
        if letters.startswith("A ("):
            assert tools[key] == (value, letters[3])
        elif key in tools and tools[key][0] == value:
            assert letters == tools[key][1] == "A", f"{key} has the tool-calling run's value, and so its letter"


def test_what_the_release_does_is_marked_c():
    """Kind: a fact of the released code given as our assumption."""
    tools = {key: letters for key, _, letters in lettered(CONFIGS / "experiment/toolrl.yaml")}
    assert {tools[key] for key in ("do_sample", "val_before_train", "lr", "train_batch_size", "top_p")} == {"C"}
    assert tools["max_actor_ckpt_to_keep"] == "A"


#: Values of the tables' experiments that are no choice of the paper: where things lie, what they are called.
OURS = {
    *("train_files", "val_files", "project_name", "experiment_name", "default_local_dir", "logger", "resume_mode"),
    *("nnodes", "override /objectives", "override /kl", "/reading", "/model", "method"),
}


@pytest.mark.parametrize(
    "path",
    [*CONFIGS.glob("experiment/t*.yaml"), *CONFIGS.glob("model/*.yaml")],
    ids=lambda path: f"{path.parent.name}/{path.name}",
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
#: Names of files that are not in the repository.
ABSENT = re.compile(
    r"\bSPEC\b|\b(?:VERL|BFCL|STYLE)\.md\b|\.\./shared\b|SAW_SHARED|/work/|(?<![\w/\"])(?:golden|prototypes|paper)/\w+\.(?:json|txt|md|py)"
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
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if ABSENT.search(line)
    ]
    assert not cited, "\n".join(cited)


def test_every_relative_link_and_cited_document_is_there():
    """Kind: as above, a link or a cited page that does not exist."""
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
