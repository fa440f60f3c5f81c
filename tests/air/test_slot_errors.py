"""Sums of a scheme of the user's own: their errors are measured, and claimed only by a scheme that knows them."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.slot_errors import ReceivedSums, received_sums
from airpfed.core.errors import UserError
from support.uplinks import as_scheme, everyone, gradients, make_air, means, send


def scheme(function):
    """An uplink whose slots a function sends."""
    return replace(make_air(), **{**as_scheme("error_free"), "send": function})


def half(link, slot, t) -> ReceivedSums:
    return received_sums(link, slot, 0.5 * slot.weights @ slot.vectors[:])


def test_the_error_is_that_of_the_sums_and_none_is_claimed():
    link = scheme(half)
    shared, personal = gradients(link)
    received = send(link, 1, shared, personal, everyone(link))
    exact, exact_personal = means(link, shared, personal, everyone(link))
    assert torch.allclose(received.shared, exact.float() / 2)
    s = received.mse.s
    assert s.measured * s.scale == pytest.approx(float((exact / 2).square().sum()))
    assert (s.bias, s.variance) == (pytest.approx(s.measured), 0)
    assert s.claimed is None and received.pi_claimed is None and received.pi > 0
    assert {error.claimed for error in received.mse.p.values()} == {None}
    assert torch.allclose(received.personal, exact_personal.float() / 2)


def test_the_scales_are_those_of_the_digital_scheme():
    shared, personal = gradients(make_air())
    mine = send(scheme(half), 1, shared, personal, everyone(make_air())).mse
    digital = send(replace(make_air(), **as_scheme("digital")), 1, shared, personal, everyone(make_air())).mse
    assert (mine.s.scale, mine.s.silence) == (digital.s.scale, digital.s.silence) and mine.s.silence > 0


def test_a_scheme_that_knows_its_error_claims_it():
    """Each receiver adds noise of its own; in two hops the s-sum holds several receivers'."""

    def noisy(link, slot, t):
        exact = slot.weights @ slot.vectors[:]
        noise = 0.1 * torch.randn(exact.shape, dtype=torch.float64, generator=link.rng("noise", t, slot.name))
        return received_sums(link, slot, exact + noise, variance=torch.full((len(exact),), 0.01 * exact.shape[1]))

    link = scheme(noisy)
    shared, personal = gradients(link)
    records = [send(link, t, shared, personal, everyone(link)).mse.s for t in range(1, 65)]
    ratio = torch.tensor([record.measured / record.claimed for record in records])
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 8
    assert all(record.bias == 0 and record.variance == record.claimed for record in records)


def test_random_numbers_of_a_link_depend_on_seed_and_names_alone():
    link = make_air()
    first, again, other = (torch.rand(3, generator=link.rng("noise", t)) for t in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_estimates_of_another_shape_are_refused():
    link = scheme(lambda link, slot, t: received_sums(link, slot, slot.vectors[:]))
    with pytest.raises(UserError, match=r"estimates have the shape \(5, 41\); should be \(1, 41\)"):
        send(link, 1, *gradients(link), everyone(link))
