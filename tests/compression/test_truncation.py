"""Truncation changes latents by the discarded variance, outputs accordingly, and folding changes nothing more."""

import copy
import pickle
import warnings

import pytest
import tiny
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_rank import (
    LinearBottleneck,
    LinearBottleneckMixin,
    attach_linear_bottleneck,
    collapse_linear_bottleneck,
    load_truncated,
    truncate_linear_bottleneck,
)
from lightning_rank.compression import measure_by_rank
from lightning_rank.nn import TruncatedBottleneck

DIM = 6


class Net(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Mixed(LinearBottleneckMixin, Net):
    def __init__(self) -> None:
        super().__init__(nn.Linear(10, DIM), mlp_decoder())
        self.add_linear_bottleneck(dim=DIM, depth=3, gain=1.0, after="encoder")


def mlp_decoder() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, 20), nn.ReLU(), nn.Linear(20, 10))


def dense() -> Net:
    return Net(nn.Linear(10, DIM), mlp_decoder())


def images() -> Net:
    return Net(nn.Conv2d(3, DIM, 2, 2), nn.Sequential(nn.Conv2d(DIM, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2)))


def attached(make=dense, depth=3) -> Net:
    net = attach_linear_bottleneck(make(), dim=DIM, depth=depth, gain=1.0)
    with torch.no_grad():  # a spectrum that falls, as training leaves it
        for layer in net.encoder.linear_bottleneck.layers:
            layer.weight.mul_(torch.logspace(0, -0.7, DIM)[:, None])
    return net


SHAPES = {
    "(B, dim)": (attached, (300, 10)),
    "(B, T, dim)": (attached, (50, 7, 10)),
    "(B, dim, H, W)": (lambda: attached(images), (40, 3, 8, 6)),
    "mixin": (Mixed, (300, 10)),
    "collapsed": (lambda: collapse_linear_bottleneck(attached()), (300, 10)),
    "depth 0": (lambda: attached(depth=0), (300, 10)),
}


def mean_square(difference: torch.Tensor, axis: int = -1) -> float:
    return difference.double().square().sum(axis).mean().item()


@pytest.mark.parametrize("given", ["latents", "loader"])
@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_latents_change_by_the_discarded_variance(kind, given):
    make, shape = SHAPES[kind]
    net, x = make(), torch.randn(shape)
    latents, axis = net.encoder(x), 1 if len(shape) == 4 else -1
    data = latents if given == "latents" else DataLoader(x, 32)
    report = truncate_linear_bottleneck(net, data, rank=3)
    assert isinstance(net.encoder.linear_bottleneck, TruncatedBottleneck)
    assert mean_square(net.encoder(x) - latents, axis) == pytest.approx(report.discarded_variance, rel=1e-4)


@pytest.mark.parametrize("given", ["latents", "loader"])
@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_folded_equals_unfolded(kind, given):
    make, shape = SHAPES[kind]
    unfolded, x = make(), torch.randn(shape)
    folded = copy.deepcopy(unfolded)
    data = unfolded.encoder(x) if given == "latents" else DataLoader(x, 32)
    truncate_linear_bottleneck(unfolded, data, rank=3)
    report = truncate_linear_bottleneck(folded, data, rank=3, fold=True)
    assert report.folded_into == "decoder.0"
    torch.testing.assert_close(folded(x), unfolded(x), rtol=1e-5, atol=1e-5)
    code = folded.encoder(x)
    axis = 1 if len(shape) == 4 else -1
    assert code.shape[axis] == 3
    rows = code.movedim(axis, -1).reshape(-1, 3).double()
    torch.testing.assert_close(rows.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-5)
    covariance = rows.T.cov(correction=0)
    torch.testing.assert_close(covariance, report.principal_deviations[:3].square().diag(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_reconstruction_changes_by_no_more_than_the_discarded_variance_predicts():
    net, x = attached(), torch.randn(500, 10)
    before = net(x)
    lipschitz = torch.prod(torch.stack([torch.linalg.matrix_norm(net.decoder[k].weight, 2) for k in (0, 2)])).item()
    for rank in (5, 4, 3, 2, 1):
        truncated = copy.deepcopy(net)
        report = truncate_linear_bottleneck(truncated, DataLoader(x, 100), rank=rank)
        change = mean_square(truncated(x) - before)
        assert 0 < change <= 1.0001 * lipschitz**2 * report.discarded_variance
        root = (mean_square(before - x)) ** 0.5 + lipschitz * report.discarded_variance**0.5
        assert mean_square(truncated(x) - x) ** 0.5 <= 1.0001 * root


@torch.no_grad()
def test_low_rank_latents_are_kept_as_they_were_at_their_numerical_rank():
    net = attached()
    net.encoder.linear_bottleneck.layers[1].weight[2:] = 0
    x = torch.randn(300, 10)
    before = net(x)
    report = truncate_linear_bottleneck(net, DataLoader(x, 100))
    assert report.rank == 2
    assert report.kept_variance_ratio == pytest.approx(1)
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    assert truncate_linear_bottleneck(attached(), net.encoder(x), variance_rtol=0).rank == 2


@torch.no_grad()
def test_an_offset_far_larger_than_the_variance_costs_nothing():
    net = attached()
    net.encoder.bias += 100
    x = torch.randn(300, 10)
    before = net(x)
    truncate_linear_bottleneck(net, DataLoader(x, 100), rank=DIM, fold=True)
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)


def test_the_report_counts_parameters_and_multiply_adds():
    net, x = attached(), torch.randn(300, 10)
    before = sum(p.numel() for p in net.parameters())
    report = truncate_linear_bottleneck(net, DataLoader(x, 100), rank=2)
    assert report.parameters == (before, before - 3 * 36 + (6 * 2 + 2) + (2 * 6 + 6))
    assert report.multiply_adds == (36, 24)
    assert sum(p.numel() for p in net.parameters()) == report.parameters[1]
    folded = attached()
    report = truncate_linear_bottleneck(folded, DataLoader(x, 100), rank=2, fold=True)
    assert report.parameters == (before, before - 3 * 36 + (6 * 2 + 2) - 20 * 4)
    assert report.multiply_adds == (36 + 20 * 6, 12 + 20 * 2)
    assert sum(p.numel() for p in folded.parameters()) == report.parameters[1]
    assert "second map folded into decoder.0" in str(report)
    assert f"{before:,}" in str(report)


class Normalized(Net):
    def forward(self, x):
        return self.decoder(nn.functional.normalize(self.encoder(x), dim=-1))


class WithHead(Net):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.head = nn.Linear(DIM, 3)

    def forward(self, x):
        latents = self.encoder(x)
        return self.decoder(latents), self.head(latents)


class WithPenalty(Net):
    def forward(self, x):
        latents = self.encoder(x)
        return self.decoder(latents), latents.square().sum()


UNFOLDABLE = {
    "normalized": (lambda: Normalized(nn.Linear(10, DIM), mlp_decoder()), (50, 10)),
    "two layers take the latents": (lambda: WithHead(nn.Linear(10, DIM), mlp_decoder()), (50, 10)),
    "the latents are used elsewhere": (lambda: WithPenalty(nn.Linear(10, DIM), mlp_decoder()), (50, 10)),
    "no linear layer": (lambda: Net(nn.Linear(10, DIM), nn.ReLU()), (50, 10)),
    "an activation first": (lambda: Net(nn.Linear(10, DIM), nn.Sequential(nn.ReLU(), mlp_decoder())), (50, 10)),
    "3x3": (lambda: Net(nn.Conv2d(3, DIM, 2, 2), nn.Conv2d(DIM, 3, 3)), (9, 3, 8, 8)),
    "padded": (lambda: Net(nn.Conv2d(3, DIM, 2, 2), nn.Conv2d(DIM, 3, 1, padding=1)), (9, 3, 8, 8)),
    "grouped": (lambda: Net(nn.Conv2d(3, DIM, 2, 2), nn.Conv2d(DIM, 3, 1, groups=3)), (9, 3, 8, 8)),
    "transposed": (lambda: Net(nn.Conv2d(3, DIM, 2, 2), nn.ConvTranspose2d(DIM, 3, 2, 2)), (9, 3, 8, 8)),
    "linear along the width": (lambda: Net(nn.Conv2d(3, DIM, 2, 2), nn.Linear(DIM, 2)), (9, 3, 8, 2 * DIM)),
}


@pytest.mark.parametrize("kind", UNFOLDABLE)
@torch.no_grad()
def test_where_nothing_can_be_folded_it_says_so_and_keeps_two_maps(kind):
    make, shape = UNFOLDABLE[kind]
    folded, x = attached(make), torch.randn(shape)
    unfolded = copy.deepcopy(folded)
    taken = kind in ("the latents are used elsewhere", "padded", "linear along the width")
    told = "with the second map in 'decoder(.0)?', .* others" if taken else "found no linear layer or 1x1 convolution"
    with pytest.warns(UserWarning, match=f"fold: {told}.* both maps are kept; looked for in module.batch"):
        report = truncate_linear_bottleneck(folded, DataLoader(x, 10), rank=3, fold=True)
    assert report.folded_into is None
    truncate_linear_bottleneck(unfolded, DataLoader(x, 10), rank=3)
    torch.testing.assert_close(folded(x), unfolded(x), rtol=0, atol=0)


class Drawing(Net):
    """As a variational autoencoder does."""

    def forward(self, x):
        z = self.encoder(x)
        return self.decoder(z + 0.1 * torch.randn_like(z))


@torch.no_grad()
def test_random_numbers_of_a_forward_pass_do_not_stand_against_folding():
    net = Drawing(nn.Linear(10, DIM), nn.Linear(DIM, 10))
    attach_linear_bottleneck(net, before="decoder", dim=DIM, depth=2, gain=1.0)
    unfolded, x = copy.deepcopy(net), torch.randn(50, 10)
    truncate_linear_bottleneck(unfolded, DataLoader(x, 50), rank=DIM)
    assert truncate_linear_bottleneck(net, DataLoader(x, 50), rank=DIM, fold=True).folded_into == "decoder"
    outputs = []
    for module in (net, unfolded):
        torch.manual_seed(1)
        outputs.append(module(x))
    torch.testing.assert_close(*outputs)


def test_of_latents_only_the_decoder_is_known():
    net = nn.Sequential(nn.Linear(10, DIM), LinearBottleneck(DIM, 2), nn.Linear(DIM, 10))
    latents = net[:2](torch.randn(50, 10))
    with pytest.warns(UserWarning, match=r"looked for in module\.decoder, as data are latents"):
        truncate_linear_bottleneck(copy.deepcopy(net), latents, rank=2, fold=True)
    report = truncate_linear_bottleneck(net, DataLoader(torch.randn(50, 10), 10), rank=2, fold=True)
    assert report.folded_into == "2"
    conditional = attached()
    conditional.decoder = nn.Bilinear(DIM, 2, 10)
    with pytest.warns(UserWarning, match="both maps are kept"):
        truncate_linear_bottleneck(conditional, latents, rank=2, fold=True)


def test_a_decoder_that_is_one_layer_without_bias_is_folded_too():
    net = attached(lambda: Net(nn.Linear(10, DIM), nn.Linear(DIM, 10, bias=False)))
    x = torch.randn(50, 10)
    other = copy.deepcopy(net)
    truncate_linear_bottleneck(other, DataLoader(x, 10), rank=3)
    assert truncate_linear_bottleneck(net, DataLoader(x, 10), rank=3, fold=True).folded_into == "decoder"
    torch.testing.assert_close(net(x), other(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", [lambda: nn.Linear(DIM, 10), lambda: nn.Sequential(nn.Linear(DIM, 10), nn.Tanh())])
def test_in_front_of_the_layer_that_takes_it_in(decoder):
    net = attach_linear_bottleneck(Net(nn.Linear(10, DIM), decoder()), before="decoder", dim=DIM, depth=2, gain=1.0)
    fresh, other, untouched = (copy.deepcopy(net) for _ in range(3))
    x = torch.randn(50, 10)
    truncate_linear_bottleneck(other, DataLoader(x, 10), rank=3)
    done = truncate_linear_bottleneck(net, DataLoader(x, 10), rank=3, fold=True)
    assert done.folded_into in ("decoder", "decoder.0")
    torch.testing.assert_close(net(x), other(x), rtol=1e-5, atol=1e-5)
    load_truncated(fresh, net.state_dict())
    torch.testing.assert_close(fresh(x), net(x))
    with pytest.warns(UserWarning, match="both maps are kept"):  # of latents behind it, the decoder cannot be run
        truncate_linear_bottleneck(untouched, torch.randn(50, DIM), rank=3, fold=True)


def test_modes_hooks_and_requires_grad_are_left_as_they_were():
    net = attached()
    net.decoder.eval()
    for parameter in [*net.encoder.linear_bottleneck.parameters(), *net.decoder[0].parameters()]:
        parameter.requires_grad_(False)
    truncate_linear_bottleneck(net, DataLoader(torch.randn(50, 10), 10), rank=3, fold=True)
    assert net.training
    assert net.encoder.linear_bottleneck.training
    assert not net.decoder[0].training
    evaluated = attached().eval()
    truncate_linear_bottleneck(evaluated, torch.randn(50, DIM), rank=3)
    assert not any(child.training for child in evaluated.modules())
    assert not any(p.requires_grad for p in [*net.encoder.linear_bottleneck.parameters(), *net.decoder[0].parameters()])
    assert net.encoder.weight.requires_grad
    for name, child in net.named_modules():
        assert len(child._forward_hooks) == (name == "encoder"), name
        assert not child._forward_pre_hooks


def test_dropout_and_batch_norm_see_no_data():
    net = attached(lambda: Net(nn.Sequential(nn.Linear(10, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.5)), mlp_decoder()))
    before = copy.deepcopy(net.encoder[1].state_dict())
    x = torch.randn(50, 10)
    reports = [truncate_linear_bottleneck(copy.deepcopy(net), DataLoader(x, 10), rank=3) for _ in range(2)]
    assert torch.equal(reports[0].principal_deviations, reports[1].principal_deviations)
    torch.testing.assert_close(net.encoder[1].state_dict(), before)


@torch.no_grad()
def test_compiled_children_are_seen():
    net, x = attached(), torch.randn(50, 10)
    eager = copy.deepcopy(net)
    net.encoder.compile(backend="eager")
    net.decoder = torch.compile(net.decoder, backend="eager")
    net(x)
    truncate_linear_bottleneck(eager, DataLoader(x, 10), rank=3)
    report = truncate_linear_bottleneck(net, DataLoader(x, 10), rank=3, fold=True)
    assert report.folded_into == "decoder.0"
    torch.testing.assert_close(net(x), eager(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fold", [False, True])
@torch.no_grad()
def test_copies_and_pickles_are_independent_and_equal(fold):
    net, x = attached(), torch.randn(50, 10)
    truncate_linear_bottleneck(net, DataLoader(x, 10), rank=3, fold=fold)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
        before = net(x)
        other.encoder.linear_bottleneck.encode.weight.zero_()
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_precisions(dtype):
    net, x = attached().to(dtype), torch.randn(200, 10, dtype=dtype)
    before = net(x)
    report = truncate_linear_bottleneck(net, DataLoader(x, 50), rank=DIM, fold=True)
    assert report.folded_into == "decoder.0"
    assert {p.dtype for p in net.parameters()} == {dtype}
    tolerance = 1e-10 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(net(x), before, rtol=tolerance, atol=tolerance)


def test_bad_input_is_refused_by_name_and_nothing_is_changed():
    net, latents = attached(), torch.randn(50, DIM)
    before = copy.deepcopy(net.state_dict())

    def refused(error, match, data=latents, module=net, **options):
        with pytest.raises(error, match=match):
            truncate_linear_bottleneck(module, data, **options)

    refused(ValueError, "rank: expected 1 to 6, the width of the latents, got 0", rank=0)
    refused(ValueError, "rank: expected 1 to 6, the width of the latents, got 7", rank=7)
    refused(TypeError, "rank: expected an int or None, got float", rank=2.0)
    refused(ValueError, r"variance_rtol: expected a number in \[0, 1\)", variance_rtol=2)
    refused(ValueError, r"variance_rtol: expected a number in \[0, 1\)", rank=2, variance_rtol=-1)
    refused(
        ValueError,
        "data: expected finite rows, got NaN or infinities in 1 of 50",
        latents.index_fill(0, torch.tensor(1), torch.nan),
    )
    refused(ValueError, "data: expected latents that vary", torch.ones(50, DIM))
    refused(
        ValueError,
        r"data: expected latents with 6 features on axis 1 of at least two, got shape \(50, 5\)",
        torch.ones(50, 5),
    )
    refused(TypeError, "data: expected real floating-point latents, got torch.int64", torch.ones(50, DIM).long())
    refused(ValueError, "data: expected one row or more, got none", latents[:0])
    refused(ValueError, "data: expected latents or batches, got none", [])
    refused(TypeError, "data: expected latents or a dataloader of training batches, got int", 3)
    refused(TypeError, "data: expected batches that are a tensor, .* got dict; pass", [{"x": latents}])
    refused(
        TypeError, "starts with one, got tuple that starts with a dict; pass the latents", [({"x": latents}, latents)]
    )
    refused(ValueError, "module: expected a LinearBottleneck somewhere in Net, found none; collapse", module=dense())
    refused(TypeError, "module: expected an nn.Module, got str", module="net")
    refused(ValueError, "got the LinearBottleneck itself", module=LinearBottleneck(DIM))
    refused(
        ValueError,
        "expected one LinearBottleneck, found '0', '1'",
        module=nn.Sequential(LinearBottleneck(DIM), LinearBottleneck(DIM)),
    )
    unused = attached()
    unused.encoder._forward_hooks.clear()
    refused(ValueError, "did not call the bottleneck; pass the latents themselves", [torch.randn(5, 10)], unused)
    plain = nn.Sequential(nn.Linear(10, DIM), LinearBottleneck(DIM).collapse())
    refused(ValueError, r"found none; .* LinearBottleneck.collapse makes a plain nn.Linear", module=plain)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert isinstance(net.encoder.linear_bottleneck, LinearBottleneck)
    truncate_linear_bottleneck(net, latents, rank=2)
    refused(ValueError, "module: expected a LinearBottleneck, but that of Net is truncated already")


def test_a_batch_that_fails_leaves_the_module_as_it_was():
    net = attached()
    before = net.encoder.linear_bottleneck
    with pytest.raises(RuntimeError):
        truncate_linear_bottleneck(net, [torch.randn(5, 10), torch.randn(5, 11)], rank=2, fold=True)
    assert net.encoder.linear_bottleneck is before
    assert net.training
    assert not before._forward_hooks


def test_no_warning_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        truncate_linear_bottleneck(tiny.tiny(), tiny.loader(), rank=2, fold=True)


class Twice(Net):
    """The bottleneck and the decoder have two names each."""

    def __init__(self) -> None:
        bottleneck = LinearBottleneck(DIM, 2, gain=1.0)
        super().__init__(nn.Sequential(nn.Linear(10, DIM), bottleneck), nn.Linear(DIM, 10))
        self.bottleneck, self.whole = bottleneck, nn.Sequential(self.encoder, self.decoder)


@pytest.mark.parametrize("fold", [False, True])
def test_a_module_with_several_names_is_replaced_under_all_of_them(fold):
    net, x = Twice(), torch.randn(200, 10)
    before = net(x)
    done = truncate_linear_bottleneck(net, [x], rank=2, fold=fold)
    assert done.folded_into == ("decoder" if fold else None)
    assert type(net.bottleneck) is type(net.encoder[1]) is TruncatedBottleneck
    torch.testing.assert_close(net.whole(x), net(x), rtol=0, atol=0)
    assert not torch.allclose(net(x), before)


def test_what_is_behind_the_bottleneck_may_write_into_the_latents():
    def make(inplace):
        torch.manual_seed(0)
        return Net(nn.Linear(10, DIM), nn.Sequential(nn.LeakyReLU(0.1, inplace), nn.Linear(DIM, 10)))

    x = torch.randn(200, 10)
    found = []
    for inplace in (False, True):
        net = attached(lambda inplace=inplace: make(inplace))
        found.append((list(measure_by_rank(net, [x]).values()), truncate_linear_bottleneck(net, [x], rank=2)))
    (errors, done), (errors_in_place, done_in_place) = found
    assert errors_in_place == pytest.approx(errors, rel=1e-5)
    torch.testing.assert_close(done_in_place.principal_deviations, done.principal_deviations)


def test_the_decoder_may_take_a_view_of_truncated_maps():
    class Flat(nn.Linear):
        def forward(self, z):
            return super().forward(z.view(len(z), -1)).view(-1, 1, 8, 8)

    net, x = Net(nn.Conv2d(1, DIM, 3, stride=4, padding=1), Flat(4 * DIM, 64)), torch.randn(20, 1, 8, 8)
    attach_linear_bottleneck(net, dim=DIM, depth=2, gain=1.0)
    before = net(x)
    assert len(measure_by_rank(net, [x])) == DIM
    truncate_linear_bottleneck(net, [x], rank=DIM)
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["truncate", "load"])
def test_what_is_made_in_inference_mode_can_be_trained(way):
    net, x = attached(), torch.randn(200, 10)
    saved = attached()
    truncate_linear_bottleneck(saved, [x], rank=2, fold=True)
    with torch.inference_mode():
        if way == "truncate":
            truncate_linear_bottleneck(net, [x], rank=2, fold=True)
        else:
            load_truncated(net, saved.state_dict())
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_latents_that_are_refused_leave_no_hook():
    net = attached()
    with pytest.raises(ValueError, match="features on axis 0 of at least two") as kept:
        measure_by_rank(net, [torch.randn(10)])
    assert kept.tb is not None
    assert not net.encoder.linear_bottleneck._forward_hooks


def test_a_state_dict_that_does_not_fit_leaves_the_module_as_it_was():
    saved, net, x = attached(), attached(), torch.randn(200, 10)
    truncate_linear_bottleneck(saved, [x], rank=2, fold=True)
    whole = saved.state_dict()
    lacking = {key: value for key, value in whole.items() if key != "decoder.2.bias"}
    keys = list(net.state_dict())
    with pytest.raises(RuntimeError, match=r"decoder\.2\.bias"):
        load_truncated(net, lacking)
    assert list(net.state_dict()) == keys
    load_truncated(net, whole)
    torch.testing.assert_close(net(x), saved(x))


def test_of_small_outputs_other_ones_are_seen_too():
    class Small(Net):
        def forward(self, x):
            z = self.encoder(x)
            return 1e-4 * (self.decoder(z) + z.norm(dim=1, keepdim=True))

    net, x = Small(nn.Linear(10, DIM), nn.Linear(DIM, 10)), torch.randn(200, 10)
    attach_linear_bottleneck(net, dim=DIM, depth=2, gain=1.0)
    with pytest.warns(UserWarning, match="the outputs are others"):
        assert truncate_linear_bottleneck(net, [x], rank=DIM, fold=True).folded_into is None


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_padded_sequences_of_a_transformer_are_cut_too():
    """Evaluating, torch nests them; the padding is no latent."""

    class Padded(nn.TransformerEncoder):
        def forward(self, x):
            padding = torch.zeros(x.shape[:2], dtype=torch.bool)
            padding[:3, -2:] = True
            return super().forward(x, src_key_padding_mask=padding)

    layer = nn.TransformerEncoderLayer(DIM, 2, 8, dropout=0.0, batch_first=True)
    net, x = Net(Padded(layer, 2), nn.Identity()), torch.randn(9, 5, DIM)
    attach_linear_bottleneck(net, after="encoder.layers.0", dim=DIM, depth=2, gain=1.0)
    with torch.no_grad():
        expected = net.eval()(x)
        at_each = measure_by_rank(net, [x], measure=lambda module: module(x), ranks=[2, DIM])
        torch.testing.assert_close(at_each[DIM], expected, rtol=1e-4, atol=1e-5)
        truncate_linear_bottleneck(net, [x], rank=2)
        torch.testing.assert_close(net(x), at_each[2], rtol=1e-4, atol=1e-5)


def test_nothing_is_drawn():
    net, x = attached(), torch.randn(200, 10)
    state = torch.get_rng_state()
    truncate_linear_bottleneck(net, [x], rank=2, fold=True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fold", [False, True])
def test_hooks_of_ones_own_stay_and_can_be_taken_off(fold):
    """One that reads, and one that a decoder cannot do without."""
    net, x = attached(), torch.randn(200, 10)
    bottleneck, read = net.encoder.linear_bottleneck, []
    with torch.no_grad():
        net.encoder.weight[3:].zero_()  # rank 3
    handles = [
        bottleneck.register_forward_pre_hook(lambda module, args: read.append(args[0])),
        bottleneck.register_forward_hook(lambda module, args, output: output.sin()),
    ]
    expected = net(x)
    read.clear()
    if fold:
        with pytest.warns(UserWarning, match="the outputs are others, so both maps are kept"):
            truncate_linear_bottleneck(net, DataLoader(x, 50), rank=3, fold=True)
    else:
        truncate_linear_bottleneck(net, DataLoader(x, 50), rank=3)
    fresh = attached()
    fresh.encoder.linear_bottleneck.register_forward_hook(lambda module, args, output: output.sin())
    load_truncated(fresh, net.state_dict())
    read.clear()
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-5)
    assert len(read) == 1
    for handle in handles:
        handle.remove()
    assert not net.encoder.linear_bottleneck._forward_hooks
    assert not net.encoder.linear_bottleneck._forward_pre_hooks
