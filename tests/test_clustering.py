"""SwAV and DeepCluster v2: official values through whole methods, k-means and memory by themselves, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from conformance import Case, moment, views
from visrep.functional import dino_loss
from visrep.method import At, Batch, Tokens
from visrep.methods import preset
from visrep.methods.clustering import deepclusterv2, swav
from visrep.nn import kmeans
from visrep.nn.kmeans import spherical_kmeans
from visrep.nn.memory import Memory
from visrep.nn.sinkhorn import sinkhorn
from visrep.rundir import RunFolder
from visrep.starting import resume, start

GOLDEN = Path(__file__).parent / "golden" / "clustering.npz"


def arrays(prefix: str) -> dict[str, Tensor]:
    with np.load(GOLDEN) as stored:
        return {
            name.removeprefix(prefix): torch.from_numpy(stored[name])
            for name in stored.files
            if name.startswith(prefix)
        }


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Pixels(nn.Module):
    """An encoder whose features are the pixels."""

    def forward(self, images: Tensor) -> Tokens:
        return Tokens(patches=images.flatten(1)[:, None], grid=(1, 1))


def as_pixels(z: Tensor, index: Tensor | None = None) -> Batch:
    """Vectors "v b 16" as crops of 4 x 4 pixels: two global, the others local."""
    crops = tuple(x.unflatten(-1, (1, 4, 4)) for x in z.split([2, len(z) - 2]) if len(x))
    none = tuple(torch.zeros(*x.shape[:2], 4) for x in crops)
    index = torch.arange(z.shape[1]) if index is None else index
    return Batch(crops, none, tuple(x[..., 0] > 0 for x in none), index)


def official_swav(gold: dict[str, Tensor], **changes: float) -> swav.SwAV:
    """Our SwAV on raw embeddings, with the prototypes of the published run."""
    cfg = replace(swav.tiny().method, out=16, prototypes=24, queue=32, tau=0.1, epsilon=0.05, **changes)
    method = swav.SwAV(cfg).double()
    method.backbone, method.head = Pixels(), nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        method.prototypes.copy_(gold["prototypes_raw"])
    return method


def fill(method: swav.SwAV, newest_first: Tensor, filled: int = 32) -> None:
    assert method.queue is not None
    method.queue.rows.copy_(torch.cat(list(newest_first), dim=1).flip(0))
    method.queue.filled.fill_(filled)


def test_sinkhorn() -> None:
    gold = arrays("swav.")
    close(sinkhorn(gold["scores"], 0.05, 3), gold["sinkhorn_q"])


@pytest.mark.parametrize("queue", ["none", "not full", "too early"])
def test_swav_loss_and_gradients(queue: str) -> None:
    gold = arrays("swav.")
    method = official_swav(gold, queue_from=6.0 if queue == "too early" else 0.0)
    if queue != "none":
        fill(method, gold["queue_before"], filled=32 if queue == "too early" else 24)
    z = gold["emb_raw"].unflatten(0, (4, 8)).requires_grad_()
    losses = method.loss(as_pixels(z), moment(50))  # epoch 5
    losses.terms["swav"].backward()
    close(losses.terms["swav"], gold["loss"])
    assert z.grad is not None and method.prototypes.grad is not None
    close(z.grad.flatten(0, 1), gold["grad_emb_raw"])
    # Official gradients are those of prototypes of length 1; ours lack the part that changes the length.
    c, g = gold["prototypes_normalized"], gold["grad_prototypes"]
    across = g - (g * c).sum(1, keepdim=True) * c
    close(method.prototypes.grad, across / gold["prototypes_raw"].norm(dim=1, keepdim=True))


def test_swav_gradient_of_prototypes_of_length_one() -> None:
    gold = arrays("swav.")
    z = F.normalize(gold["emb_raw"], dim=1).unflatten(0, (4, 8))
    c = gold["prototypes_normalized"].requires_grad_()
    scores = z @ c.T
    q = swav.codes(scores[:2], scores.new_zeros(2, 0, 24), 0.05, 3)
    dino_loss(q, scores, 0.1).backward()
    assert c.grad is not None
    close(c.grad, gold["grad_prototypes"])


def test_swav_with_a_queue() -> None:
    gold = arrays("swav.")
    method = official_swav(gold)
    fill(method, gold["queue_before"])
    z = gold["emb_raw"].unflatten(0, (4, 8)).requires_grad_()
    losses = method.loss(as_pixels(z), moment())
    losses.terms["swav"].backward()
    close(losses.terms["swav"], gold["loss_with_queue"])
    assert z.grad is not None
    close(z.grad.flatten(0, 1), gold["grad_emb_raw_with_queue"])

    method.after_step(moment(), losses.carry)
    assert method.queue is not None
    rows = method.queue.rows
    close(torch.cat([rows[:8], rows[8:].flip(0)]), torch.cat(list(gold["queue_after"]), dim=1))


def test_the_length_of_a_prototype_takes_no_part() -> None:
    method, batch = Case("swav").build().double(), views(Case("swav"))
    batch = replace(batch, crops=tuple(x.double() for x in batch.crops))
    assert isinstance(method, swav.SwAV)
    before = method.loss(batch, moment()).terms["swav"]
    with torch.no_grad():
        method.prototypes.mul_(torch.linspace(0.1, 10, len(method.prototypes))[:, None])
    close(method.loss(batch, moment()).terms["swav"], before)


def test_swav_refuses_what_cannot_be_shared() -> None:
    cfg = swav.tiny().method
    carry = {"z": torch.zeros(16, 2, cfg.out)}
    with pytest.raises(ValueError, match=r"3000 prototypes cannot share the 160 images .* at most 160"):
        swav.SwAV(replace(cfg, prototypes=3000)).after_step(moment(), carry)
    with pytest.raises(ValueError, match=r"16 vectors, which does not divide a queue of 40. .* 32"):
        swav.SwAV(replace(cfg, queue=40)).after_step(moment(), carry)
    assert swav.SwAV(replace(cfg, queue=0)).queue is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iterations", [1, 10])
def test_kmeans(iterations: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "ROWS", 7)
    gold = arrays("kmeans.")
    for head in (0, 1):
        x = gold["memory"][head].to(dtype)
        centroids, nearest = spherical_kmeans(x, x[gold[f"init_idx_{head}"]], iterations)
        close(centroids.float(), gold[f"centroids{head}_{iterations}iters"], 1e-6)
        assert torch.equal(nearest, gold[f"assignments_{iterations}iters"][head][gold["index"]])


def test_kmeans_leaves_a_centroid_without_vectors_where_it_is() -> None:
    x = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0]]), dim=1)
    start = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    centroids, nearest = spherical_kmeans(x, start, 3)
    assert nearest.tolist() == [0, 0, 1]
    close(centroids, torch.stack([torch.tensor([1.0, 0.0]), x[2], start[2]]), 1e-6)


@dataclass(frozen=True)
class Noise(At):
    """Hands out stored random numbers."""

    noise: Tensor = field(kw_only=True)

    def rand(self, b: int, *shape: int) -> Tensor:
        assert (b, *shape) == self.noise.shape
        return self.noise


def clustered(gold: dict[str, Tensor]) -> deepclusterv2.DeepClusterV2:
    """Our DeepCluster v2 after looking at the points of the published run, in batches, and clustering them."""
    cfg = replace(deepclusterv2.tiny().method, out=16, heads=2, clusters=10, tau=0.1)
    method, index = deepclusterv2.DeepClusterV2(cfg), gold["index"]
    method.backbone, method.head = Pixels(), nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    noise = torch.ones(2, len(index))
    for head in (0, 1):  # smallest where the published run draws its centroids, in that order
        noise[head, index[gold[f"init_idx_{head}"]]] = torch.arange(10) / 20
    batches = [as_pixels(gold["memory"][:, rows], index[rows]) for rows in torch.arange(96).split(32)]
    method.before_epoch(batches, Noise(0, 10, 10, torch.Generator(), noise=noise))
    return method


def test_deepcluster_clusters_as_the_official_code() -> None:
    gold = arrays("kmeans.")
    method = clustered(gold)
    assert torch.equal(method.clusters.rows.T, gold["assignments_10iters"])
    for head in (0, 1):
        close(method.centroids[head], gold[f"centroids{head}_10iters"], 1e-6)


def test_deepcluster_loss_is_cross_entropy_over_all_crops_heads_and_known_images() -> None:
    gold = arrays("kmeans.")
    method = clustered(gold)
    index = torch.tensor([5, 500, 90, 17])  # 500 has not been seen
    z = torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = method.loss(as_pixels(z, index), moment())
    losses.terms["deepcluster"].backward()

    again = z.detach().clone().requires_grad_()
    expected = torch.zeros(())
    for head in (0, 1):
        for b in (0, 2, 3):
            for crop in again[:, b]:
                scores = method.centroids[head] @ (crop / crop.norm()) / 0.1
                target = gold["assignments_10iters"][head, index[b]]
                expected = expected - scores.log_softmax(0)[target] / (2 * 3 * 4)
    expected.backward()
    close(losses.terms["deepcluster"], expected, 1e-6)
    assert z.grad is not None and again.grad is not None
    close(z.grad, again.grad, 1e-6)
    assert not z.grad[:, 1].any() and losses.monitor["known_images"] == 0.75

    unknown = method.loss(as_pixels(z, index + 500), moment())
    assert unknown.terms["deepcluster"] == 0 and unknown.terms["deepcluster"].requires_grad

    before = method.clusters.rows.clone()
    method.after_step(moment(), losses.carry)
    close(method.memory.rows[index], F.normalize(z[:2], dim=-1).detach().transpose(0, 1), 1e-6)
    assert torch.equal(method.clusters.rows, before), "clusters change between epochs"
    method.before_epoch(never(), moment())
    assert method.clusters.read(index)[1].all(), "an image that was seen has no cluster in the next epoch"


def never() -> Iterator[Batch]:
    raise AssertionError("the images are looked at again, though all are known")
    yield


def test_deepcluster_refuses_more_clusters_than_images() -> None:
    case = Case("deepclusterv2")
    with pytest.raises(ValueError, match=r"16 images cannot form 3000 clusters. .* at most 16"):
        case.build(cfg=replace(case.run.method, clusters=3000))


def test_deepcluster_starts_from_its_checkpoint_without_looking_at_the_images() -> None:
    case = Case("deepclusterv2")
    old, new = case.build(seed=0), case.fresh(seed=1)
    new.load_state_dict(old.state_dict())
    batch = views(case)
    assert torch.equal(
        *(method.loss(batch, moment()).terms["deepcluster"] for method in (old, new))  # type: ignore[misc]
    )
    for method in (old, new):
        method.before_epoch(never(), moment(10))
    for name, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name


def test_memory_keeps_the_last_row_and_grows() -> None:
    memory = Memory(2, dtype=torch.float64)
    assert not memory.read(torch.tensor([0, 3]))[1].any()
    rows = torch.arange(10, dtype=torch.float64).unflatten(0, (5, 2))
    memory.write(torch.tensor([4, 1]), rows[:2])
    memory.write(torch.tensor([6, 1, 6]), rows[2:])
    assert len(memory) == 7
    read, known = memory.read(torch.tensor([1, 9, 4, 6, 0]))
    assert known.tolist() == [True, False, True, True, False]
    close(read, torch.stack([rows[3], rows[0] * 0, rows[0], rows[4], rows[0] * 0]), 0)


@pytest.mark.parametrize("size", [0, 3, 20])
def test_memory_takes_the_size_of_a_checkpoint(size: int) -> None:
    saved, loaded = Memory(3), Memory(3)
    saved.write(torch.arange(7), torch.randn(7, 3))
    if size:
        loaded.write(torch.arange(size), torch.randn(size, 3))
    nn.ModuleDict({"part": loaded}).load_state_dict(nn.ModuleDict({"part": saved}).state_dict())
    assert len(loaded) == 7
    assert torch.equal(loaded.rows, saved.rows) and torch.equal(loaded.known, saved.known)


def known_unevenly(share: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and memory after a batch that has one known image in its first half and three in its second."""
    method = clustered(arrays("kmeans.")).double()
    index = torch.tensor([5, 500, 501, 502, 1, 2, 503, 3])[share]
    z = torch.randn(2, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[:, share]
    z = z.clone().requires_grad_()
    world = 8 // len(index)
    losses = method.loss(as_pixels(z, index), moment(rank=share.start // 4, world=world))
    losses.terms["deepcluster"].backward()
    method.after_step(moment(), losses.carry)
    assert z.grad is not None
    return losses.terms["deepcluster"].detach(), z.grad / world, method.memory.rows


def known_on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(known_unevenly(slice(4 * rank, 4 * rank + 4)), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_that_know_different_numbers_of_images_share_one_mean(tmp_path: Path) -> None:
    mp.spawn(known_on_a_rank, args=(str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    loss, grad, memory = known_unevenly(slice(0, 8))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    close(torch.stack([rank[0] for rank in ranks]).mean(), loss)
    close(torch.cat([rank[1] for rank in ranks], dim=1), grad)
    for rank in ranks:
        close(rank[2], memory)


def test_deepcluster_resumed_in_the_middle_of_an_epoch_ends_where_an_unbroken_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(preset("deepclusterv2:tiny")[2], epochs=3, monitor_images=40)  # 4 steps an epoch
    whole = start(replace(run, out=str(tmp_path / "whole")), method="deepclusterv2", preset="tiny")

    after_step = deepclusterv2.DeepClusterV2.after_step

    def stop(self: deepclusterv2.DeepClusterV2, at: At, carry: dict[str, Tensor]) -> None:
        after_step(self, at, carry)
        if at.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(deepclusterv2.DeepClusterV2, "after_step", stop)
    often = replace(run, out=str(tmp_path / "broken"), checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        start(often, method="deepclusterv2", preset="tiny")
    monkeypatch.undo()
    assert RunFolder(tmp_path / "broken").load_checkpoint()["step"] == 5
    resume(tmp_path / "broken")
    a, b = (RunFolder(path).load_checkpoint()["method"] for path in (whole, tmp_path / "broken"))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_deepcluster_learns_to_predict_its_clusters() -> None:
    """Unlike in the conformance suite, all images are clustered anew at the start of every epoch, as in a run."""
    case = Case("deepclusterv2")
    method = case.fresh()
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    batches = [views(case, 64).rows(rows) for rows in torch.arange(64).split(16)]
    losses: list[list[float]] = []
    for epoch in range(4):
        method.before_epoch(batches, moment(10 * epoch))
        losses.append([])
        for batch in batches * 4:
            optimizer.zero_grad()
            taken = method.loss(batch, moment(10 * epoch))
            taken.terms["deepcluster"].backward()
            optimizer.step()
            method.after_step(moment(10 * epoch), taken.carry)
            losses[-1].append(taken.terms["deepcluster"].item())
    for epoch in losses:
        assert np.mean(epoch[-4:]) < 0.9 * np.mean(epoch[:4]), epoch
    assert losses[0][0] < 2 * math.log(case.run.method.clusters)
