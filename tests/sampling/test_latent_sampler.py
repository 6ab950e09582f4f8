"""New latents have the mean, covariance and subspace of the old ones, whatever their rank."""

import sys

import pytest
import tiny
import torch
from scipy.stats import multivariate_normal
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_rank.sampling import LatentSampler

KINDS = ("gaussian", "mixture")


def low_rank(n=2000, dim=32, rank=3, dtype=torch.float64):
    scale = torch.linspace(2, 1, rank, dtype=torch.float64)
    rows = torch.randn(n, rank, dtype=torch.float64) * scale
    return (rows @ torch.linalg.qr(torch.randn(dim, rank, dtype=torch.float64)).Q.T + 5).to(dtype)


def two_clusters(n=1000):
    rows = torch.randn(n, 4, dtype=torch.float64)
    rows[: n // 4] += 20
    return rows


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_converge_to_the_fitted_mean_and_covariance(kind):
    latents = two_clusters() if kind == "mixture" else low_rank()
    samples = LatentSampler(kind=kind, n_components=2).fit(latents).sample(200_000, seeded())
    scale = latents.T.cov(correction=0).diagonal().max().item()
    torch.testing.assert_close(samples.mean(0), latents.mean(0), rtol=0, atol=0.01 * scale**0.5)
    torch.testing.assert_close(samples.T.cov(), latents.T.cov(correction=0), rtol=0, atol=0.01 * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_lie_in_the_subspace_of_rank_deficient_latents(kind, dtype):
    latents = low_rank(dtype=dtype)
    sampler = LatentSampler(kind=kind, n_components=3).fit(latents)
    assert sampler.directions.shape == (32, 3)
    samples = sampler.sample(500)
    assert samples.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    centred = latents.double() - latents.double().mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    offset = samples.double() - latents.double().mean(0)
    across = (offset - offset @ directions.T @ directions).norm(dim=1) / offset.norm(dim=1).max()
    assert across.max() < 20 * torch.finfo(samples.dtype).eps
    assert sampler.log_prob(latents).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 20])
def test_fewer_rows_than_features_do(n, kind):
    latents = torch.randn(n, 64)
    sampler = LatentSampler(kind=kind, n_components=2).fit(latents)
    assert sampler.directions.shape == (64, n - 1)
    samples = sampler.sample(4000).double()
    centred, spread = (samples - latents.mean(0)), (latents - latents.mean(0)).double()
    basis = torch.linalg.svd(spread, full_matrices=False).Vh[: n - 1]
    torch.testing.assert_close(centred @ basis.T @ basis, centred, rtol=1e-4, atol=1e-4)
    # As wide as the rows are spread, in all.
    assert centred.square().sum(1).mean().item() == pytest.approx(spread.square().sum(1).mean().item(), rel=0.1)


def test_a_rank_beyond_that_of_the_latents_takes_the_directions_that_there_are():
    latents = low_rank()
    assert LatentSampler(rank=32).fit(latents).directions.shape == (32, 3)
    two = LatentSampler(rank=2).fit(latents).directions
    assert two.shape == (32, 2)
    leading = torch.linalg.svd(latents - latents.mean(0), full_matrices=False).Vh[:2].to(two.dtype)
    torch.testing.assert_close(two @ two.T, leading.T @ leading, rtol=1e-3, atol=1e-4)


def test_the_density_of_a_gaussian_is_that_of_scipy():
    latents = torch.randn(500, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    sampler = LatentSampler(rank=5).fit(latents)
    reference = multivariate_normal(latents.mean(0), latents.T.cov(correction=0))
    points = torch.randn(40, 5, dtype=torch.float64) * 5
    torch.testing.assert_close(sampler.log_prob(points), torch.tensor(reference.logpdf(points)))


def test_the_density_of_a_mixture_is_that_of_scikit_learn():
    from sklearn.mixture import GaussianMixture

    latents, points = two_clusters(), torch.randn(40, 4, dtype=torch.float64) * 5
    sampler = LatentSampler(kind="mixture", n_components=2).fit(latents)
    reference = GaussianMixture(2, random_state=0).fit(latents.numpy()).score_samples(points.numpy())
    torch.testing.assert_close(sampler.log_prob(points), torch.tensor(reference), rtol=1e-3, atol=1e-3)


def test_the_density_of_low_rank_latents_is_that_of_their_projection():
    latents = low_rank()
    sampler = LatentSampler().fit(latents)
    along = (latents - latents.mean(0)) @ sampler.directions
    expected = multivariate_normal(torch.zeros(3), along.T.cov(correction=0)).logpdf(along)
    torch.testing.assert_close(sampler.log_prob(latents), torch.tensor(expected))
    across = torch.randn(2000, 32, dtype=torch.float64)
    across -= across @ sampler.directions @ sampler.directions.T
    torch.testing.assert_close(sampler.log_prob(latents + across), sampler.log_prob(latents))


def test_the_units_of_the_latents_do_not_matter_to_a_mixture():
    densities = []
    for unit in (1.0, 1e-4):
        torch.manual_seed(0)
        latents = two_clusters() * unit
        sampler = LatentSampler(kind="mixture", n_components=2).fit(latents)
        densities.append(sampler.log_prob(latents) + 4 * torch.tensor(unit).log())
    torch.testing.assert_close(*densities, rtol=1e-5, atol=1e-5)


def test_batches_give_what_the_whole_gives():
    latents = low_rank(n=5000)
    batches = (batch for batch in latents.split(700))
    whole, streamed = LatentSampler().fit(latents), LatentSampler().fit(batches)
    for a, b in zip(whole.buffers(), streamed.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_samples(kind):
    sampler = LatentSampler(kind=kind, n_components=2).fit(two_clusters())
    first, again, other = (sampler.sample(50, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_seed_governs_the_fit_of_a_mixture():
    latents = torch.randn(200, 4)
    torch.manual_seed(3)
    first = LatentSampler(kind="mixture", n_components=5).fit(latents)
    torch.manual_seed(3)
    again = LatentSampler(kind="mixture", n_components=5).fit(latents)
    assert torch.equal(first.component_means, again.component_means)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loaded_without_scikit_learn(kind, tmp_path, monkeypatch):
    sampler = LatentSampler(kind=kind, n_components=2).fit(two_clusters())
    torch.save(sampler.state_dict(), tmp_path / "sampler.pt")
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    loaded = LatentSampler(kind=kind)
    loaded.load_state_dict(torch.load(tmp_path / "sampler.pt"))
    assert torch.equal(loaded.sample(9, seeded()), sampler.sample(9, seeded()))
    refitted = LatentSampler(rank=1).fit(torch.randn(20, 7))
    refitted.load_state_dict(sampler.state_dict())
    assert torch.equal(refitted.log_prob(torch.ones(4)), sampler.log_prob(torch.ones(4)))


class WithSampler(tiny.TinyMixedIn):
    def __init__(self) -> None:
        super().__init__()
        self.sampler = LatentSampler()


@pytest.mark.parametrize("fitted", [True, False])
def test_it_goes_with_the_checkpoint_of_its_module(fitted, tmp_path):
    model = WithSampler()
    if fitted:
        model.sampler.fit(model.encoder(tiny.rows()))
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(model, tiny.loader())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = WithSampler.load_from_checkpoint(tmp_path / "model.ckpt")
    if fitted:
        assert torch.equal(loaded.sampler.sample(9, seeded()), model.sampler.sample(9, seeded()))
    else:
        with pytest.raises(RuntimeError, match="call fit"):
            loaded.sampler.sample(1)


def test_densities_are_differentiable_after_a_fit_in_inference_mode_too():
    with torch.inference_mode():
        sampler = LatentSampler().fit(torch.randn(50, 4))
        sampler.sample(3)
    latents = torch.randn(3, 4, requires_grad=True)
    sampler.log_prob(latents).sum().backward()
    assert (latents.grad != 0).any()


def test_it_moves_with_its_module():
    sampler = nn.Sequential(LatentSampler().fit(torch.randn(50, 4))).to(torch.bfloat16)[0]
    assert sampler.sample(3).dtype == torch.bfloat16
    assert sampler.log_prob(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_loader_of_images_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"latents: expected batches that are tensors, got list; .* encoder"):
        LatentSampler().fit(tiny.loader())
    sampler = LatentSampler().fit(tiny.TinyAutoencoder().encoder(x) for (x,) in tiny.loader())
    assert sampler.directions.shape[0] == tiny.DIM


def test_bad_input_is_refused_by_name(monkeypatch):
    latents = torch.randn(30, 4)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"rank: expected 1 or more, got {bad}"):
            LatentSampler(rank=bad)
    with pytest.raises(TypeError, match="rank: expected an int, got float"):
        LatentSampler(rank=2.5)
    with pytest.raises(ValueError, match="rank: expected at most 4, the width of the latents, got 5"):
        LatentSampler(rank=5).fit(latents)
    with pytest.raises(ValueError, match="n_components: expected 1 or more, got 0"):
        LatentSampler(kind="mixture", n_components=0)
    with pytest.raises(ValueError, match="kind: expected one of 'gaussian', 'mixture', got 'flow'"):
        LatentSampler(kind="flow")
    with pytest.raises(ValueError, match=r"variance_rtol: expected a number in \[0, 1\)"):
        LatentSampler(variance_rtol=1)
    for kind in KINDS:
        with pytest.raises(ValueError, match="latents: expected finite rows, got NaN or infinities in 1 of 30"):
            LatentSampler(kind=kind).fit(latents.index_fill(0, torch.tensor(3), torch.nan))
    with pytest.raises(ValueError, match="latents: expected rows that vary"):
        LatentSampler().fit(torch.ones(30, 4))
    with pytest.raises(ValueError, match="latents: expected one row or more, got none"):
        LatentSampler().fit([])
    with pytest.raises(ValueError, match=r"latents: expected shape \(n, dim\), got \(2, 4, 3, 3\); flatten"):
        LatentSampler().fit(torch.randn(2, 4, 3, 3))
    with pytest.raises(ValueError, match=r"latents: expected shape \(n, 4\), got \(30, 5\)"):
        LatentSampler().fit([latents, torch.randn(30, 5)])
    with pytest.raises(TypeError, match=r"latents: expected real floating-point rows, got torch\.int64"):
        LatentSampler().fit(torch.ones(30, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="latents: expected a tensor or an iterable of tensors, got int"):
        LatentSampler().fit(3)
    with pytest.raises(ValueError, match="expected at least as many rows as components, got 30 for 40"):
        LatentSampler(kind="mixture", n_components=40).fit(latents)
    for call in (lambda: LatentSampler().sample(1), lambda: LatentSampler().log_prob(latents)):
        with pytest.raises(RuntimeError, match="nothing to sample from yet; call fit"):
            call()
    sampler = LatentSampler().fit(latents)
    with pytest.raises(ValueError, match="n: expected 1 or more, got 0"):
        sampler.sample(0)
    with pytest.raises(TypeError, match="n: expected an int, got float"):
        sampler.sample(2.0)
    with pytest.raises(ValueError, match=r"latents: expected shape \(..., 4\), got \(3, 5\)"):
        sampler.log_prob(torch.randn(3, 5))
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(
        ImportError, match=r"kind='mixture' needs scikit-learn .* pip install 'lightning-rank\[sampling\]'"
    ):
        LatentSampler(kind="mixture").fit(latents)


def test_autocast_leaves_samples_in_the_subspace_and_densities_as_they_are():
    latents = low_rank(dtype=torch.float32)
    sampler = LatentSampler().fit(latents)
    samples, densities = sampler.sample(50, seeded()), sampler.log_prob(latents)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sampler.sample(50, seeded()), samples, rtol=0, atol=0)
        torch.testing.assert_close(sampler.log_prob(latents), densities, rtol=0, atol=0)


def test_samples_take_no_matrix_each():
    """A factor for each sample would be 5,000 matrices, 655 MB."""
    sampler = LatentSampler().fit(torch.randn(1000, 181))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        sampler.sample(5000)
    assert max(event.cpu_memory_usage for event in taken.events()) < 20 * 5000 * 181 * 4


def test_latents_without_features_are_refused():
    with pytest.raises(ValueError, match=r"expected shape \(n, dim\), got \(5, 0\)"):
        LatentSampler().fit(torch.empty(5, 0))
