"""A few dozen data files of all kinds, whole and damaged, and those that failed before."""

import base64
import zlib

import datasets
import pytest
from hypothesis import HealthCheck, example, given, settings

from fuzz.data_files import Case, check, drive, strategy

ENDS_THE_PROCESS = zlib.decompress(
    base64.b85decode(
        "c-nnY!AiqG5S>}qrH35S&{=jNhaBwELt3oR(nBxadno?FrYtB_8`G#M^ynw~ab5%`R3xZ)nD=02-rG0q`ub){k_I$bF+l==0N`6F2q>W>=YC"
        "9zR62(d76yI4&r`uA5zoYLb<@J(FZID-^HXh?GcanuxefQ8Bv5oAjI2Xb4`G$^8bw24&bPh@+pmt6Hnq8flp;F=72DH3@jxH-(JfrBo7J`%fCM"
        "naOiR`)>p-$q*W~oZx62#4SL~+#&qu$bmafMHqpbAR<5Q@|o3b4Hs@lC|&!O7i?H;nL`Q&mkwK-qW9`eDp<`4J;+`2Tb"
    )
)
"""A damaged Parquet file: asked for the metadata of its columns, pyarrow 26 ends the process."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategy())
@example(Case(".json", b"[" * 100_000))
@example(Case(".jsonl", b'{"text": ' + b"[" * 100_000))
@example(Case(".jsonl", b'{"text": "a\\ud800", "label": "x"}\n{"text": "b", "label": "y"}'))
@example(Case(".jsonl", b'{"text": "a", "label": "x\\udfff"}\n{"text": "b", "label": "y"}', kind="generate"))
@example(Case(".jsonl", b'{"text": "a", "label": "x", "\\ud800": 1}\n{"text": "b", "label": "y"}'))
@example(Case(".csv", b"text,label\na\0b,x\nb,y\n"))
@example(Case(".csv", "text,label\na,b\n".encode("utf-16")))
@example(Case(".csv", b"text,label\n" + b"x" * 140_000 + b",a\nb,b\n"))
@example(Case(".json", b'[{"text": 1e400, "label": ' + b"9" * 5000 + b"}]"))
@example(Case(".parquet", ENDS_THE_PROCESS))
@example(Case(".csv", "text,label\n\u200b,a\nb,b\nc,a\n".encode()))
def test_a_data_file_gives_samples_or_one_line(case: Case) -> None:
    assert check(case) in ("accepted", "refused")


def test_the_driver_counts_what_became_of_the_files() -> None:
    counts = drive(40, 3)
    assert counts["accepted"] + counts["refused"] == 40 and counts["accepted"] > 3 and counts["refused"] > 3
