import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian as slow_hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

from robust import Normalize, cross_entropy
from robust.theory.bounds import BoundTerms, bound_terms, class_means, transfer_terms
from robust.theory.hessian import hessian_vector_product
from robust.theory.landscape import loss_surface
from robust.theory.spectrum import finite_difference_curvature, gradient_cosine, top_eigenvalue

METHODS = ["power", "lanczos", "full"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def itself(outputs, _):
    return outputs


def quadratic(a):
    return lambda x: (x.flatten(1) @ a * x.flatten(1)).sum(1) / 2


def symmetric(eigenvalues, seed=0):
    """A symmetric matrix of given eigenvalues, and its eigenvectors as columns."""
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, generator=rng(seed), dtype=torch.float64)).Q
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T, q


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).mT[:, None].contiguous()  # and a dimension of heads: else no fused kernel takes them
        return F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0].mT.reshape(x.shape)


NETS = {
    "smooth": lambda: [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.SiLU(), nn.AvgPool2d(2)],
    "batch norm": lambda: [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2)],
    "attention": lambda: [nn.Conv2d(1, 4, 2, stride=2), Attention()],
    "relu": lambda: [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2)],
}


def convnet(kind="smooth", dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(Normalize([0.5], [0.25]), *NETS[kind](), nn.Flatten(), nn.Linear(64, 3))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return net.to(dtype).eval()


def batch(n=5, dtype=torch.float64):
    return torch.rand(n, 1, 8, 8, generator=rng(1), dtype=dtype), torch.randint(3, (n,), generator=rng(2))


def hessians(net, images, targets):
    """(N, features, features), by PyTorch, example by example."""
    with sdpa_kernel(SDPBackend.MATH):
        found = [
            slow_hessian(lambda v, y=y: cross_entropy(net(v[None]), y[None])[0], x)
            for x, y in zip(images, targets, strict=True)
        ]
    return torch.stack(found).view(len(images), images[0].numel(), -1)


# The Hessian


@pytest.mark.parametrize("kind", NETS)
def test_products_are_those_of_the_whole_hessian(kind):
    net, (images, targets) = convnet(kind), batch()
    vectors = torch.randn(images.shape, generator=rng(3), dtype=images.dtype)
    expected = torch.einsum("nij,nj->ni", hessians(net, images, targets), vectors.flatten(1)).view_as(images)
    assert expected.abs().max() > 1e-3
    for batch_size in (100, 2):
        found = hessian_vector_product(net, images, targets, vectors, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert not found.requires_grad
    soft = hessian_vector_product(net, images, F.one_hot(targets, 3).to(images), vectors)
    torch.testing.assert_close(soft, expected, rtol=1e-9, atol=1e-12)


def test_a_net_whose_first_layer_is_a_convolution_has_the_same_derivatives():
    """Normalize hides the images from it; without, they are the very tensor that is differentiated twice."""
    net, (images, targets) = convnet(), batch()
    net = net[1:]
    expected = hessians(net, images, targets).sum(2).view_as(images)
    found = hessian_vector_product(net, images, targets, torch.ones_like(images))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_linear_loss_has_no_curvature():
    x = torch.rand(3, 4)
    assert torch.equal(hessian_vector_product(lambda x: x.sum(1), x, x, x, criterion=itself), torch.zeros(3, 4))
    for method in METHODS:
        values, vectors = top_eigenvalue(lambda x: x.sum(1), x, x, method=method, criterion=itself)
        assert torch.equal(values, torch.zeros(3))
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("method", METHODS)
def test_softmax_of_a_linear_model_has_a_closed_form(method):
    net = nn.Linear(20, 5).double()
    net.weight.data.normal_(generator=rng())
    images = torch.rand(6, 20, generator=rng(1), dtype=torch.float64)
    targets = torch.randint(5, (6,), generator=rng(2))
    w, p = net.weight.detach(), net(images).softmax(1).detach()
    exact = w.T @ (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ w
    expected, eigenvectors = torch.linalg.eigh(exact)
    values, vectors = top_eigenvalue(net, images, targets, method=method, tolerance=1e-6)
    torch.testing.assert_close(values, expected[:, -1], rtol=1e-6, atol=0)
    torch.testing.assert_close((vectors * eigenvectors[:, :, -1]).sum(1).abs(), torch.ones(6).double())
    assert (expected[:, :-4].abs() < 1e-9).all()  # rank K - 1
    products = hessian_vector_product(net, images, targets, vectors)
    torch.testing.assert_close(products, torch.einsum("nij,nj->ni", exact, vectors))


@pytest.mark.parametrize(("kind", "dtype"), [("smooth", torch.float64), ("batch norm", torch.float64)])
def test_the_methods_agree_on_smooth_nets(kind, dtype):
    net, (images, targets) = convnet(kind, dtype), batch(dtype=dtype)
    spectra = torch.linalg.eigvalsh(hessians(net, images, targets))
    assert (spectra[:, 0] < -1e-3).all()  # indefinite
    for method in METHODS:
        values, vectors = top_eigenvalue(net, images, targets, method=method)
        torch.testing.assert_close(values, spectra[:, -1], rtol=1e-4, atol=0)
        residuals = hessian_vector_product(net, images, targets, vectors) - values.view(-1, 1, 1, 1) * vectors
        assert (residuals.flatten(1).norm(dim=1) <= 1e-3 * values).all()


def test_the_methods_agree_on_piecewise_linear_nets_whose_hessian_has_low_rank():
    net, (images, targets) = convnet("relu"), batch()
    spectra = torch.linalg.eigvalsh(hessians(net, images, targets))
    assert (spectra[:, -2] > 1e-4).all()
    assert (spectra[:, :-2].abs() < 1e-12).all()  # positive semidefinite, of rank K - 1
    found = [top_eigenvalue(net.float(), images.float(), targets, method=method) for method in METHODS]
    for values, vectors in found:
        torch.testing.assert_close(values, spectra[:, -1].float(), rtol=1e-3, atol=0)
        torch.testing.assert_close((vectors * found[0][1]).flatten(1).sum(1).abs(), torch.ones(5), rtol=0, atol=1e-4)


SPECTRA = {
    "negative end dominates": [-10.0, -3.0, 0.5, 1.0],
    "ends tie": [-1.0, 0.1, 0.5, 1.0],
    "ends nearly tie": [-1.001, -1.0, 0.2, 1.0],
    "negative definite": [-4.0, -3.0, -2.0, -1.0],
    "narrow and negative": [-1.02, -1.01, -1.0, -0.9],
    "minus identity": [-1.0, -1.0, -1.0, -1.0],
    "negative semidefinite": [-2.0, -1.0, -0.5, 0.0],
    "small beside the negative end": [-1.0, -0.9, 0.001, 0.01],
    "double": [0.0, 0.5, 2.0, 2.0],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_algebraically_largest_eigenvalue_is_found_wherever_the_negative_end_lies(method, spectrum, dtype):
    a = symmetric(spectrum)[0].to(dtype)
    x = torch.rand(3, 4, generator=rng(), dtype=dtype)
    options = {"method": method, "criterion": itself, "iterations": 3000}
    values, vectors = top_eigenvalue(quadratic(a), x, x, generator=rng(5), **options)
    torch.testing.assert_close(values, torch.full_like(values, spectrum[-1]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(((vectors @ a) * vectors).sum(1), values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_examples_of_one_batch_may_differ_in_all(method):
    """A positive, a negative, a flat and a tiny Hessian side by side: -x0^2/2 .. each scaled by its own first pixel."""
    scale = torch.tensor([2.0, -2.0, 0.0, 1e-20], dtype=torch.float32)
    a = torch.diag(torch.tensor([3.0, 1.0, -0.5]))

    def model(x):
        return scale[: len(x)] * quadratic(a)(x) if len(x) == 4 else scale[x[:, 0].long()] * quadratic(a)(x)

    x = torch.stack([torch.arange(4.0) + 0.5, torch.rand(4, generator=rng()), torch.rand(4, generator=rng(1))], 1)
    values, _ = top_eigenvalue(model, x, x, method=method, criterion=itself)
    torch.testing.assert_close(values / torch.tensor([6.0, 1.0, 1.0, 3e-20]), torch.tensor([1.0, 1, 0, 1]))


@pytest.mark.parametrize("method", METHODS)
def test_one_feature(method):
    x = torch.tensor([[1.0], [2.0]])
    values, vectors = top_eigenvalue(lambda x: x.pow(3).sum(1), x, x, method=method, criterion=itself)
    torch.testing.assert_close(values, torch.tensor([6.0, 12.0]))
    torch.testing.assert_close(vectors.abs(), torch.ones(2, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.long
def test_companions_in_the_batch_change_nothing(method):
    net, (images, targets) = convnet(), batch()
    whole, vectors = top_eigenvalue(net, images, targets, method=method)
    for who in ([3], [4, 2], [0, 1, 2, 3]):
        values, part = top_eigenvalue(net, images[who], targets[who], method=method)
        torch.testing.assert_close(values, whole[who], rtol=1e-9, atol=0)
        torch.testing.assert_close(part, vectors[who], rtol=0, atol=1e-8)
    for batch_size in (1, 2):
        options = {"method": method, "generator": rng(7), "batch_size": batch_size}
        split, _ = top_eigenvalue(net, images, targets, **options)
        torch.testing.assert_close(
            split, top_eigenvalue(net, images, targets, **options | {"generator": rng(7), "batch_size": 100})[0]
        )


@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_who_has_not_converged_is_counted(method):
    a = torch.diag(torch.linspace(0.99, 1, 200, dtype=torch.float64))
    x = torch.rand(2, 200, generator=rng(), dtype=torch.float64)
    options = {"method": method, "criterion": itself, "iterations": 1, "tolerance": 1e-12}
    with pytest.warns(RuntimeWarning, match=rf"2 of 2 examples are not within 1e-12 after 1 iterations \({method}\)"):
        values, _ = top_eigenvalue(quadratic(a), x, x, **options)
    assert values.isnan().all() if method == "lanczos" else ((values > 0.98) & (values < 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qr"}, "method is 'qr'; choose from power, lanczos, full"),
        ({"method": "full"}, "at most 1024 features, not 1025"),
        ({"iterations": 0}, "iterations is 0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    x = torch.rand(1, 1025)
    with pytest.raises(ValueError, match=message):
        top_eigenvalue(quadratic(torch.eye(1025)), x, x, criterion=itself, **options)


# The gradient direction


def test_the_cosine_is_one_along_the_gradient_and_zero_across():
    net, (images, targets) = convnet(), batch()
    x = images.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(cross_entropy(net(x), targets).sum(), x)
    across = torch.randn(images.shape, generator=rng(3), dtype=images.dtype)
    across -= (
        (across * gradients).flatten(1).sum(1).view(-1, 1, 1, 1)
        * gradients
        / gradients.flatten(1).square().sum(1).view(-1, 1, 1, 1)
    )
    for vectors, expected in ((-3 * gradients, 1.0), (across, 0.0), (across.sign() * 0, 0.0)):
        found = gradient_cosine(net, images, targets, vectors, batch_size=2)
        torch.testing.assert_close(found, torch.full((5,), expected, dtype=torch.float64))


def test_finite_differences_tend_to_the_product_with_the_unit_gradient():
    net, (images, targets) = convnet(), batch()
    x = images.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(cross_entropy(net(x), targets).sum(), x)
    z = gradients / gradients.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    exact = torch.einsum("nij,nj->ni", hessians(net, images, targets), z.flatten(1)).norm(dim=1)
    errors = [
        (finite_difference_curvature(net, images, targets, h=h, batch_size=2) - exact).abs() for h in (1e-3, 1e-4)
    ]
    assert (errors[1] < 1e-3 * exact).all()
    torch.testing.assert_close(errors[0] / errors[1], torch.full_like(exact, 10.0), rtol=0.1, atol=0)  # first order


def test_finite_differences_of_a_quadratic_are_exact_at_every_h():
    a, _ = symmetric([-3.0, 1.0, 2.0])
    x = torch.rand(4, 3, generator=rng(), dtype=torch.float64)
    z = x @ a / (x @ a).norm(dim=1, keepdim=True)
    for h in (0.1, 5.0):
        found = finite_difference_curvature(quadratic(a), x, x, h=h, criterion=itself)
        torch.testing.assert_close(found, (z @ a).norm(dim=1))
    with pytest.raises(ValueError, match="h is 0"):
        finite_difference_curvature(quadratic(a), x, x, h=0, criterion=itself)


# Bound (2)


def of_loss(function):
    """Logits whose cross-entropy for class 0 is function(x) > 0."""
    return lambda x: torch.stack([torch.zeros(len(x)).to(x), function(x).expm1().log()], 1)


def bowl(curvature, slope=(0.0, 0.0, 0.0), level=2.0):
    """Level + slope (x - 1/2) + (x - 1/2)' curvature (x - 1/2) / 2."""
    slope = torch.tensor(slope, dtype=torch.float64)
    return of_loss(lambda x: level + (x - 0.5) @ slope + quadratic(curvature)(x - 0.5))


CENTRE = torch.full((1, 3), 0.5, dtype=torch.float64)
CLASS_0 = torch.tensor([0])


@pytest.mark.parametrize("method", METHODS)
def test_on_a_quadratic_the_bound_is_met_where_the_gradient_is_the_top_eigenvector(method):
    a, q = symmetric([-4.0, 1.0, 3.0])
    terms = bound_terms(bowl(a, (0.7 * q[:, 2]).tolist()), CENTRE, CLASS_0, 0.2, method=method)
    for found, expected in (
        (terms.loss, 2.0),
        (terms.gradient, 0.14),
        (terms.lambda_1, 3.0),
        (terms.curvature, 0.06),
        (terms.bound, 2.2),
        (terms.quadratic, 2.2),
        (terms.adversarial_loss, 2.2),
    ):
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-6, atol=0)
    assert terms.holds.all()
    assert terms.rho == 0.2


def test_elsewhere_it_is_strict():
    a, q = symmetric([-4.0, 1.0, 3.0])
    terms = bound_terms(bowl(a, (0.7 * q[:, 1]).tolist()), CENTRE, CLASS_0, 0.2, steps=100, restarts=3)
    # the best of |v| <= rho spends all on directions 1 and 2: a trust-region problem, solved on a fine circle
    angle = torch.linspace(0, 3.15, 100001, dtype=torch.float64)
    exact = (2 + 0.7 * 0.2 * angle.cos() + 0.02 * (angle.cos() ** 2 + 3 * angle.sin() ** 2)).max()
    torch.testing.assert_close(terms.quadratic, exact[None], rtol=1e-9, atol=0)
    torch.testing.assert_close(terms.adversarial_loss, exact[None], rtol=1e-4, atol=0)
    assert terms.holds.all()
    assert terms.bound > terms.adversarial_loss + 0.01


def test_a_concave_loss_takes_no_credit_for_its_curvature():
    terms = bound_terms(bowl(-torch.eye(3, dtype=torch.float64)), CENTRE, CLASS_0, 0.2)
    torch.testing.assert_close(terms.lambda_1, -torch.ones(1, dtype=torch.float64))
    assert terms.curvature == 0
    assert terms.holds.all()
    assert terms.loss + 0.02 * terms.lambda_1 < terms.adversarial_loss  # (2) as printed would fail


def test_a_third_order_term_is_seen():
    steep = of_loss(lambda x: (10 * (x[:, 0] - 0.5)).exp())
    terms = bound_terms(steep, CENTRE, CLASS_0, 0.1)
    torch.testing.assert_close(terms.bound, torch.tensor([2.5], dtype=torch.float64), rtol=1e-4, atol=0)
    torch.testing.assert_close(terms.quadratic, terms.bound)
    torch.testing.assert_close(terms.adversarial_loss, torch.ones(1, dtype=torch.float64).exp())
    assert not terms.holds.any()


def test_the_adversarial_loss_goes_on_rising_where_the_example_is_wrong_already():
    net = nn.Linear(6, 2).double()
    net.weight.data.normal_(generator=rng(3))
    images = 0.4 + 0.2 * torch.rand(8, 6, generator=rng(), dtype=torch.float64)
    targets = torch.arange(8) % 2
    difference = (net.weight[0] - net.weight[1]).detach()
    margins = (net(images)[:, 0] - net(images)[:, 1]).detach() * (1 - 2 * targets)
    assert (margins < 0).any()
    assert (margins > 0).any()
    for batch_size in (100, 3):
        terms = bound_terms(net, images, targets, 0.3, batch_size=batch_size)
        torch.testing.assert_close(terms.loss, F.softplus(-margins))
        torch.testing.assert_close(terms.adversarial_loss, F.softplus(0.3 * difference.norm() - margins))
        p = margins.sigmoid()
        torch.testing.assert_close(terms.gradient, 0.3 * (1 - p) * difference.norm())
        torch.testing.assert_close(terms.lambda_1, p * (1 - p) * difference.norm() ** 2)


def test_an_attack_that_lands_lower_leaves_the_clean_loss():
    hill = bowl(-50 * torch.eye(3, dtype=torch.float64), (0.1, 0.0, 0.0))
    terms = bound_terms(hill, CENTRE, CLASS_0, 0.1, steps=1, restarts=0)  # its one step goes over the top
    torch.testing.assert_close(terms.adversarial_loss, terms.loss, rtol=0, atol=0)


def test_rho_and_pixels_are_checked():
    for rho in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rho is"):
            bound_terms(nn.Linear(3, 2), torch.rand(1, 3), CLASS_0, rho)
    with pytest.raises(ValueError, match="pixels in"):
        bound_terms(nn.Linear(3, 2), torch.rand(1, 3) + 1, CLASS_0, 0.1)


# Bound (3)


def terms(loss, gradient, lambda_1, quadratic, rho=0.5):
    loss, gradient, lambda_1, quadratic = map(torch.tensor, (loss, gradient, lambda_1, quadratic))
    return BoundTerms(rho, loss, gradient, rho**2 / 2 * lambda_1.clamp_min(0), lambda_1, quadratic, quadratic + 1)


def test_the_terms_of_a_transfer_by_hand():
    real = terms([1.0, 3.0, 5.0], [0.1, 0.3, 0.5], [8.0, 16.0, -1.0], [2.0, 5.0, 9.0])
    distilled = terms([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [4.7, 9.0, 5.5])
    found = transfer_terms(
        real,
        distilled,
        real_targets=torch.tensor([0, 0, 1]),
        distilled_targets=torch.tensor([0, 1, 0]),
        real_features=torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 5.0]]),
        distilled_features=torch.tensor([[3.0, 5.0], [5.0, 5.0], [0.0, 1.0]]),
    )
    for name, expected in (
        ("loss", [2.0, 5.0, 2.0]),
        ("gradient", [0.2, 0.5, 0.2]),
        ("curvature", [1.5, 0.0, 1.5]),
        ("distance", [5.0, 0.0, 0.0]),
        ("slope", [1.5, 0.0, 1.5]),
        ("quadratic", [4.7, 9.0, 5.5]),
        ("adversarial_loss", [5.7, 10.0, 6.5]),
        ("least_lipschitz", [0.2, float("inf"), float("inf")]),
    ):
        torch.testing.assert_close(getattr(found, name), torch.tensor(expected), msg=name)
    torch.testing.assert_close(found.bound(2.0), torch.tensor([13.7, 5.5, 3.7]))
    torch.testing.assert_close(found.bound(found.least_lipschitz)[0], torch.tensor(4.7))


def test_the_slope_is_not_one_of_rounding_errors():
    """A 1-Lipschitz loss of near features, in the dtype that features have; equal features have no slope."""
    features = 17 / 8 * torch.ones(60, 64) + 0.01 * torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    features[1] = features[0]
    losses = features.double() @ torch.ones(64).double() / 8
    losses[1] *= 1 + 1e-7
    zero = torch.zeros(60)
    made = BoundTerms(0.5, zero, zero, zero, zero, losses.float(), losses.float())
    where = {"real_targets": zero.long(), "distilled_targets": zero.long()}
    found = transfer_terms(made, made, **where, real_features=features, distilled_features=features)
    assert 0.1 < found.slope[0] < 1.001


def test_a_set_against_itself_needs_no_lipschitz_constant_where_the_loss_is_level():
    net, (images, targets) = convnet(), batch()
    ours = bound_terms(net, images, targets, 0.01)
    features = net[:-1](images).detach()
    options = {"real_targets": targets, "distilled_targets": targets}
    found = transfer_terms(ours, ours, **options, real_features=features, distilled_features=features)
    for c in targets.unique():
        mine = targets == c
        assert (found.distance[mine] > 0).all() or mine.sum() == 1
        torch.testing.assert_close(found.bound(0.0)[mine], ours.bound[mine].mean().expand(int(mine.sum())))
    assert (found.bound(found.least_lipschitz + 1e-9) >= found.quadratic).logical_or(found.distance == 0).all()


def test_the_terms_of_a_class_are_the_means_over_its_images():
    found = class_means(
        terms([1.0, 3.0, 5.0], [0.1, 0.3, 0.5], [8.0, 16.0, 2.0], [2.0, 5.0, 9.0]), torch.tensor([7, 7, 2])
    )
    for name, expected in (
        ("loss", [5.0, 2.0]),
        ("gradient", [0.5, 0.2]),
        ("lambda_1", [2.0, 12.0]),
        ("curvature", [0.25, 1.5]),
        ("quadratic", [9.0, 3.5]),
        ("adversarial_loss", [10.0, 4.5]),
    ):
        torch.testing.assert_close(getattr(found, name), torch.tensor(expected), msg=name)
    assert found.rho == 0.5


def test_sets_that_do_not_fit_are_refused():
    one, other = terms([1.0], [1.0], [1.0], [1.0]), terms([1.0], [1.0], [1.0], [1.0], rho=0.1)
    options = {"real_features": torch.zeros(1, 2), "distilled_features": torch.zeros(1, 2)}
    zero, three = torch.tensor([0]), torch.tensor([3])
    with pytest.raises(ValueError, match=r"real terms are at rho 0.5, distilled terms at 0.1"):
        transfer_terms(one, other, real_targets=zero, distilled_targets=zero, **options)
    with pytest.raises(ValueError, match="no real example of class 3"):
        transfer_terms(one, one, real_targets=zero, distilled_targets=three, **options)


# The surface


def test_the_surface_of_a_sphere():
    """Its gradient is the point itself, so that |x + a z + b w|^2 is (|x| + a)^2 + b^2 where w is orthogonal to z."""
    x = torch.rand(2, 3, generator=rng(), dtype=torch.float64)
    half_square = quadratic(torch.eye(6, dtype=torch.float64))
    options = {"extent": 2.0, "points": 5, "criterion": itself}
    losses, steps = loss_surface(half_square, x, torch.tensor(0), **options, batch_size=3, generator=rng(1))
    assert steps.tolist() == [-2, -1, 0, 1, 2]
    torch.testing.assert_close(losses, ((x.norm() + steps[:, None]) ** 2 + steps**2) / 2)


def test_the_random_direction_is_the_generators():
    net, (images, targets) = convnet(), batch()

    def surface(**options):
        return loss_surface(net, images[0], targets[0], extent=0.5, points=5, **options)[0]

    first, again, other, default = (
        surface(generator=rng(0)),
        surface(generator=rng(0)),
        surface(generator=rng(1)),
        surface(),
    )
    assert torch.equal(first, again)
    assert torch.equal(first, default)
    torch.testing.assert_close(first[:, 2], other[:, 2])  # along the gradient
    assert (first[:, 0] - other[:, 0]).abs().max() > 1e-3
    torch.testing.assert_close(first[2, 2], cross_entropy(net(images[:1]), targets[:1]).detach()[0])


def test_a_surface_without_a_direction_or_an_extent_is_refused():
    x = torch.zeros(3)
    for options, message in (
        ({"extent": 0.0}, "extent is 0.0"),
        ({"extent": 1.0, "points": 1}, "points is 1"),
        ({"extent": 1.0}, "gradient is zero"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_surface(quadratic(torch.eye(3)), x, torch.tensor(0), criterion=itself, **options)


# What is lent


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.long
def test_the_model_the_images_and_the_global_generator_are_left_as_they_were(training):
    net, (images, targets) = convnet("batch norm"), batch()
    net.insert(4, nn.Dropout(0.5))
    net[1].train(training)
    net[2].train(training)
    net[4].train(training)
    net[1].weight.requires_grad_(False)
    net[1].bias.grad = torch.ones(4, dtype=torch.float64)
    images.requires_grad_()
    before, state = copy.deepcopy(net), torch.get_rng_state()
    results = []
    for _ in range(2):
        for method in METHODS:
            values, vectors = top_eigenvalue(net, images, targets, method=method)
            results += [values, vectors]
        results += [
            hessian_vector_product(net, images, targets, vectors),
            gradient_cosine(net, images, targets, vectors),
            finite_difference_curvature(net, images, targets, h=0.1),
            bound_terms(net, images, targets, 0.05).adversarial_loss,
            bound_terms(net, images, targets, 0.05).bound,
            *loss_surface(net, images[0], targets[0], extent=0.1, points=3),
        ]
    half = len(results) // 2
    assert all(torch.equal(a, b) for a, b in zip(results[:half], results[half:], strict=True))  # no dropout
    assert not any(result.requires_grad for result in results)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(net.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert images.grad is None
    assert all(p.grad is None for p in net.parameters() if p is not net[1].bias)
    assert torch.equal(net[1].bias.grad, torch.ones(4, dtype=torch.float64))
    with torch.no_grad():
        again = top_eigenvalue(net, images, targets)[0]
    assert torch.equal(again, results[0])
