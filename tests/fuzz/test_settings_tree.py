"""A few hundred settings by machine; what once failed stays."""

from collections import OrderedDict
from pathlib import Path

import pytest
import tomlkit

from airpfed.config.settings_file import read_settings
from airpfed.core.errors import UserError
from fuzz import settings_tree
from fuzz.settings_tree import Case, check, furnish, plain


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("fuzz"))


def test_what_is_accepted_plays_and_what_is_not_is_told():
    said: list[str] = []
    found = settings_tree.run(150, 0, said.append)
    assert found["failed"] == 0, "\n".join(said)
    assert found["accepted"] > 20 and found["refused"] > 20


def text(*, causal: bool = True, **sections: dict) -> bytes:
    """The plain tree with some sections added to."""
    tree = plain(causal)
    for section, own in sections.items():
        tree.setdefault(section, {}).update(own)
    return tomlkit.dumps(tree).encode()


FAILED = {
    "an SNR at which 1 + SNR is 1": (Case(text(radio={"snr_db": -200.0}), ()), "accepted"),
    "a probe too short to bound an eigenvalue": (
        Case(text(theory={"meter_every": 1, "lanczos_steps": 2, "hessian_samples": 1, "pilot_rounds": 0}), ()),
        "accepted",
    ),
    "a key with a control character": (Case(text(model={"\x95": 1}), ()), "refused"),
    "a key with a line break": (Case(text(model={"a\nb": 1}), ()), "refused"),
    "a byte order mark": (Case(b"\xef\xbb\xbf" + text(), ()), "accepted"),
    "line ends of Windows": (Case(text().replace(b"\n", b"\r\n"), ()), "accepted"),
    "brackets without end": (Case(b"a = " + b"[" * 5000, ()), "refused"),
    "brackets without end by --set": (Case(text(), ("radio.antennas=" + "[" * 5000,)), "refused"),
    "a number of 400 digits": (Case(text(radio={"antennas": 10**400}), ()), "refused"),
    "a number of 400 digits for a decimal one": (Case(text(radio={"snr_db": 10**400}), ()), "refused"),
    "a number of 5000 digits": (Case(text() + b"\n[a]\nb = " + b"9" * 5000, ()), "refused"),
    "a number of 5000 digits by --set": (Case(text(), ("radio.antennas=" + "9" * 5000,)), "refused"),
    "a section by --set": (Case(text(), ("radio=3",)), "refused"),
    "no key by --set": (Case(text(), (".=",)), "refused"),
    "two equals signs by --set": (Case(text(), ("a=b=c",)), "refused"),
    "an unknown key of all tasks": (Case(text(), ("tasks.*.x=1",)), "refused"),
    "tasks that are no list": (Case(b"tasks = 3", ("tasks.*.devices=1",)), "refused"),
    "tasks that are no tables": (Case(b"tasks = [1, 2]", ("tasks.*.devices=1",)), "refused"),
    "a model twice": (Case(b"[[model]]\nbase = 'x'\n[[tasks]]\nname = 'a'\n", ()), "refused"),
    "a date": (Case(b"[radio]\nsnr_db = 2026-01-01\n[[tasks]]\nname = 'a'\n", ()), "refused"),
    "not a number": (Case(b"[radio]\nsnr_db = nan\n[[tasks]]\nname = 'a'\n", ()), "refused"),
    "two keys a line by --set": (Case(text(), ("radio.antennas=4\nb=3",)), "refused"),
    "an expectation of another shape": (Case(b"expected = 3\n" + text(), ()), "accepted"),
}


@pytest.mark.parametrize("name", FAILED)
def test_what_failed_is_decided(name, furnished):
    case, verdict = FAILED[name]
    assert check(case, furnished, OrderedDict()) == verdict


@pytest.mark.parametrize("sent", [{"channel": "umi"}, {"channel": {"name": "tdl_a", "delay_spread_s": 1e-7}}])
def test_a_3gpp_channel_plays_too(sent, furnished):
    assert check(Case(text(radio=sent), ()), furnished, OrderedDict()) == "accepted"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("radio.antennas=1000000", ["radio.antennas = 1000000", "GB", "fewer antennas"]),
        ("adapters.rank_shared=100000", ["adapters.rank_shared = 100000", "GB", "a lower rank"]),
        ("devices.batch_size=1000000", ["devices.batch_size = 1000000", "GB", "a smaller batch"]),
    ],
)
def test_what_cannot_fit_is_refused_before_it_grows(change, words, furnished, monkeypatch):
    monkeypatch.setattr("airpfed.core.memory.available_memory", lambda: 30e6)
    file = furnished / "large.toml"
    file.write_bytes(text())
    settings = read_settings(file, [change])
    with pytest.raises(UserError) as caught:
        settings_tree._plays(settings, OrderedDict())
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)
