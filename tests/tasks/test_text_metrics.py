"""Metrics of texts and of likelihoods by hand, and held to the packages that define them."""

import importlib.util
import math
import random
import sys

import pytest

from airpfed.core.errors import UserError
from airpfed.tasks import metrics
from airpfed.tasks.metrics import METRICS, macro_f1, perplexity, token_f1


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def test_token_f1_by_hand() -> None:
    assert token_f1(["the cat sat"], ["A cat sat, down!"]) == pytest.approx(2 * 2 / (2 + 3))
    assert token_f1(["the cat sat"], ["A cat sat, down!"], normalise=False) == pytest.approx(2 / (3 + 4))
    assert token_f1(["cat cat"], ["cat"]) == pytest.approx(2 / 3)  # a word counts as often as it stands in both
    assert token_f1(["", "x", ""], ["", "", "y"]) == pytest.approx(1 / 3)
    assert token_f1(["caf\u00e9"], ["cafe\u0301"]) == 1.0


def test_perplexity_is_over_all_tokens_not_over_answers() -> None:
    assert perplexity([-2.0, -4.0], [1, 2]) == pytest.approx(math.exp(2.0))
    assert perplexity([-8.0, 0.0], [1, 3]) == pytest.approx(math.exp(2.0))
    uniform = [-n * math.log(50) for n in (3, 1, 7)]
    assert perplexity(uniform, [3, 1, 7]) == pytest.approx(50)


def test_a_model_that_is_not_finite_has_a_finite_perplexity() -> None:
    for likelihood in (float("nan"), -math.inf, -1e9):
        assert perplexity([likelihood, -1.0], [1, 1]) == pytest.approx(math.exp(metrics.MAX_NATS))


@pytest.mark.parametrize("name", ["token_f1", "perplexity"])
def test_nothing_to_score_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no predictions"):
        METRICS[name].score([], [])
    with pytest.raises(ValueError):
        METRICS[name].score([], ["a"] if name == "token_f1" else [1])


@needs("rouge_score")
def test_rouge_l_by_hand() -> None:
    guesses, answers = ["the cat sat", "a b c d"], ["cat sat down", "a x b d"]
    assert metrics.rouge_l(guesses, answers) == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert metrics.rouge_l(["cats"], ["cat"]) == 0 and metrics.rouge_l(["cats"], ["cat"], stemmer=True) == 1


@needs("sacrebleu")
def test_bleu_and_chrf_by_hand() -> None:
    text = "the cat sat on the mat"
    assert metrics.bleu([text], [text]) == pytest.approx(1.0) and metrics.chrf([text], [text]) == pytest.approx(1.0)
    # precisions 4/5, 3/4, 2/3, 1/2 of n-grams; brevity penalty exp(1 - 6/5)
    expected = math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert metrics.bleu(["the cat sat on a"], [text]) == pytest.approx(expected)
    assert metrics.bleu(["THE CAT SAT ON THE MAT"], [text], lowercase=True) == pytest.approx(1.0)
    # character n-grams of "ab" and "abc": precision (1, 1), recall (2/3, 1/2), beta 2, over orders both have
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert metrics.chrf(["ab"], ["abc"]) == pytest.approx(5 * precision * recall / (4 * precision + recall), abs=0.01)
    assert metrics.chrf(["cat mat"], ["mat cat"], word_order=2) < 1


@needs("sklearn")
def test_macro_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    rng = random.Random(0)
    labels = [rng.randrange(5) for _ in range(60)]
    guesses = [label if rng.random() < 0.5 else rng.randrange(7) for label in labels]
    expected = f1_score(labels, guesses, average="macro", labels=sorted(set(labels)))
    assert macro_f1(guesses, labels) == pytest.approx(expected)
    inside = [min(guess, 4) for guess in guesses]
    assert metrics.balanced_accuracy(inside, labels) == pytest.approx(balanced_accuracy_score(labels, inside))


@pytest.mark.parametrize(("name", "module"), [("rouge_l", "rouge_score"), ("chrf", "sacrebleu"), ("bleu", "sacrebleu")])
def test_a_missing_package_is_one_line(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [key for key in sys.modules if key.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        METRICS[name].score(["a"], ["a"])
    assert 'run pip install "airpfed[metrics]"' in str(caught.value) and "\n" not in str(caught.value)
