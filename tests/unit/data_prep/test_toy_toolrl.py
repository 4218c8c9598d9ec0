"""The toy rows of the command line."""

import pyarrow.parquet as pq
import pytest

from data_prep import toy_toolrl


@pytest.mark.parametrize("target", ["--out", "--raw"])
@pytest.mark.parametrize(("option", "value"), [("--train-rows", "-3"), ("--train-rows", "0"), ("--test-rows", "-1")])
def test_a_number_of_rows_below_one_is_refused(target, option, value, tmp_path, capsys):
    """Kind: it silently wrote a file without rows."""
    with pytest.raises(SystemExit) as ended:
        toy_toolrl.main([target, str(tmp_path / "rows"), option, value])
    assert ended.value.code == 2
    assert f"{option} is {value}; expected at least 1" in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_one_row_is_enough(tmp_path):
    toy_toolrl.main(["--out", str(tmp_path), "--train-rows", "1", "--test-rows", "2"])
    assert [pq.read_table(tmp_path / f"{split}.parquet").num_rows for split in ("train", "test")] == [1, 2]
