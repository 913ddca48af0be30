"""V-JEPA's attentive probe and efficient probing against torch's attention and the paper's formula written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visrep.evaluation import probe_training
from visrep.evaluation.attentive_efficient import SCHEDULE as EFFICIENT
from visrep.evaluation.attentive_efficient import EfficientProbe, attentive_efficient
from visrep.evaluation.attentive_vjepa import SCHEDULE as VJEPA
from visrep.evaluation.attentive_vjepa import CrossAttentionProbe, attentive_vjepa
from visrep.evaluation.linear import linear


def randomised(module: nn.Module, seed: int = 0) -> None:
    rng = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)


def test_vjepa_is_a_block_of_cross_attention() -> None:
    """Keys and values of every token by torch.nn.MultiheadAttention, its output matrix the identity; and gradients."""
    d, heads = 12, 3
    probe = CrossAttentionProbe(d, 5, heads).double()
    randomised(probe)
    x = torch.randn(4, 7, d, dtype=torch.float64)
    attention = nn.MultiheadAttention(d, heads, batch_first=True).double()
    attention.in_proj_weight.data = torch.cat([layer.weight.data for layer in (probe.q, probe.k, probe.v)])
    attention.in_proj_bias.data = torch.cat([layer.bias.data for layer in (probe.q, probe.k, probe.v)])
    attention.out_proj.weight.data, attention.out_proj.bias.data = (
        torch.eye(d).double(),
        torch.zeros(d).double(),
    )

    query = probe.query.expand(4, 1, d)
    normed = probe.norm1(x)
    y = query + attention(query, normed, normed, need_weights=False)[0]
    z = y + probe.mlp(probe.norm2(y))
    expected = probe.head(z[:, 0])
    torch.testing.assert_close(probe(x), expected, atol=1e-9, rtol=0)

    named = {name: p for name, p in probe.named_parameters() if not name.startswith(("q.", "k.", "v."))}
    mine, theirs = (
        torch.autograd.grad(logits.square().sum(), list(named.values()), retain_graph=True)
        for logits in (probe(x), expected)
    )
    for name, one, other in zip(named, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-9, msg=name)


def test_vjepa_starts_as_theirs() -> None:
    probe = probe_training.seeded(lambda: CrossAttentionProbe(256, 10, 4), 0)
    out = probe.mlp[2]
    assert isinstance(out, nn.Linear)
    assert float(probe.q.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(out.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2), rel=0.02)
    assert not probe.k.bias.any() and not out.bias.any()
    assert (VJEPA.epochs, VJEPA.batch, VJEPA.lr, VJEPA.warmup) == (20, 1024, 1e-3, 0)


def test_efficient_is_the_papers_formula() -> None:
    """Values of every token, each query pools its own part of them; then BatchNorm's statistics and a linear layer."""
    d, queries, k = 12, 4, 5
    probe = EfficientProbe(d, k, queries).double()
    randomised(probe)
    x = torch.randn(6, 7, d, dtype=torch.float64)
    values = x @ probe.value.weight.T  # b p d
    pooled = torch.empty(6, d, dtype=torch.float64)
    for image in range(6):
        for m in range(queries):
            scores = torch.stack([probe.query[m] @ token / math.sqrt(d) for token in x[image]]).softmax(0)
            part = slice(m * d // queries, (m + 1) * d // queries)
            pooled[image, part] = sum(s * v for s, v in zip(scores, values[image, :, part], strict=True))
    normed = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(
        probe(x), F.linear(normed, probe.head.weight, probe.head.bias), atol=1e-9, rtol=0
    )


def test_efficient_has_as_many_weights_as_theirs() -> None:
    """1,383,400 for ViT-B and 1,000 classes stands in the log of their MAE row."""
    with torch.device("meta"):
        probe = EfficientProbe(768, 1000, 32)
    assert sum(p.numel() for p in probe.parameters()) == 1_383_400
    assert (EFFICIENT.epochs, EFFICIENT.batch, EFFICIENT.warmup) == (90, 4096, 10)
    assert EFFICIENT.lr == pytest.approx(1.6)


def needles(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """One token of sixteen is marked and carries the class, the others a random one."""
    rng = torch.Generator().manual_seed(seed)
    kinds = torch.randint(4, (n, 16), generator=rng)
    tokens = F.one_hot(kinds, 8).float() + 0.1 * torch.randn(n, 16, 8, generator=rng)
    place = torch.randint(16, (n,), generator=rng)
    tokens[torch.arange(n), place, 6] += 3
    return tokens.half(), kinds[torch.arange(n), place]


def test_presets_find_what_the_mean_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    (tokens, labels), (test, answers) = needles(1000, 0), needles(300, 1)
    (mean,) = linear(tokens.float().mean(1), labels, test.float().mean(1))
    chance = float((mean.predicted == answers).double().mean())
    for probe, least in ((attentive_vjepa, 0.9), (attentive_efficient, chance + 0.05)):
        (found,) = probe(tokens, 10 * labels + 3, test)
        assert (found.predicted == 10 * answers + 3).double().mean() > least, found.protocol


def test_presets_repeat_and_leave_torchs_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_training, "LEAST_STEPS", 20)
    tokens, labels = needles(60, 0)
    for probe in (attentive_vjepa, attentive_efficient):
        state = torch.get_rng_state()
        first, second = (probe(tokens, labels, tokens, seed=1)[0].predicted for _ in range(2))
        assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
        with pytest.raises(ValueError, match="at least 2 classes"):
            probe(tokens, torch.zeros_like(labels), tokens)


def test_heads_have_64_dimensions_where_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_training, "LEAST_STEPS", 1)
    y = torch.arange(16) % 2
    for d, heads, queries in ((192, 3, 32), (40, 1, 20), (150, 2, 30)):
        x = torch.randn(16, 3, d)
        assert attentive_vjepa(x, y, x)[0].settings["heads"] == heads
        assert attentive_efficient(x, y, x)[0].settings["queries"] == queries
