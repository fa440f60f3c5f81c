"""How a run is reopened: by `airpfed run`'s own way, or as another package registered it."""

from pathlib import Path

import pytest

from airpfed.config.settings_file import read_settings, write_settings
from airpfed.experiment import REOPEN, run


def test_the_command_line_registers_how_a_federations_run_is_reopened() -> None:
    import airpfed.cli  # noqa: F401 - registers when it is imported
    from airpfed.federation.build_federation import IDENTITY

    assert IDENTITY in REOPEN


@pytest.mark.parametrize("mark", ["mark.json", "other.json"])
def test_a_registered_run_is_reopened_by_its_own_function(
    mark: str, llama_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebuild(_settings: object, checkpoint: Path) -> object:
        raise LookupError(checkpoint)

    monkeypatch.setitem(REOPEN, "mark.json", rebuild)
    monkeypatch.setattr(run.build, "load_tasks", lambda _settings: pytest.fail("taken for a run of `airpfed run`"))
    out = tmp_path / "run"
    (out / "checkpoint").mkdir(parents=True)
    write_settings(read_settings(llama_settings), out / "experiment.toml")
    (out / "checkpoint" / mark).touch()
    expected = LookupError if mark == "mark.json" else pytest.fail.Exception
    with pytest.raises(expected):
        run.reopen_run(out)
