"""Two processes, gloo: what is gathered, averaged and normalised equals one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from visrep.distributed import gather, mean_over_ranks, rank, world
from visrep.nn.batchnorm import GatheredBatchNorm, convert_batchnorm

Numbers = dict[str, Tensor]


def whole(*shape: int) -> Tensor:
    """The batch of all ranks, large offsets included, where a careless variance would cancel."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 100


def mine(x: Tensor) -> Tensor:
    return x.chunk(world())[rank()].clone().requires_grad_()


def through_gather() -> Numbers:
    """A loss in which every rank's rows meet all rows, mean over this rank's rows."""
    x = mine(whole(6, 3))
    everyone = gather(x)
    loss = (x @ everyone.T / 100).sin().mean()
    loss.backward()
    assert x.grad is not None
    return {"everyone": everyone.detach(), "loss": mean_over_ranks(loss), "grad": x.grad / world()}


def network(*, momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 4 * 4, 5), nn.BatchNorm1d(5, momentum=momentum),
    )  # fmt: skip
    for norm in (net[1], net[5]):
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return net.double()


def through_batchnorm(momentum: float | None) -> Numbers:
    """Output, gradients averaged over ranks, statistics and evaluation of a network with two BatchNorms."""
    net = network(momentum=momentum)
    if world() > 1:
        convert_batchnorm(net)
        assert sum(isinstance(module, GatheredBatchNorm) for module in net) == 2
    net(mine(whole(8, 3, 6, 6)).detach() + 1)  # a first step, so that statistics are averaged
    x = mine(whole(8, 3, 6, 6))
    y = net(x)
    y.sin().mean().backward()
    assert x.grad is not None
    numbers = {
        f"grad {name}": mean_over_ranks(p.grad) for name, p in net.named_parameters() if p.grad is not None
    }
    numbers |= {name: value.double() for name, value in net.state_dict().items()}
    net.eval()
    return numbers | {
        "y": gather(y.detach()),
        "grad x": x.grad / world(),
        "evaluated": gather(net(x).detach()),
    }


def everything() -> dict[str, Numbers]:
    return {
        "gather": through_gather(),
        "batchnorm": through_batchnorm(0.1),
        "batchnorm, cumulative": through_batchnorm(None),
    }


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(everything(), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Numbers]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_worker, args=(str(folder),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("part", ["gather", "batchnorm", "batchnorm, cumulative"])
def test_two_ranks_equal_one(part: str, ranks: list[dict[str, Numbers]]) -> None:
    alone = everything()[part]
    first, second = (outcome[part] for outcome in ranks)
    assert alone.keys() == first.keys() == second.keys()
    for name, expected in alone.items():
        if name in ("grad", "grad x"):  # of this rank's rows
            actual = torch.cat([first[name], second[name]])
        else:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
            actual = first[name]
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_one_process_changes_nothing() -> None:
    x = torch.randn(4, 2, requires_grad=True)
    assert (rank(), world()) == (0, 1)
    assert gather(x) is x
    assert torch.equal(mean_over_ranks(x), x) and not mean_over_ranks(x).requires_grad


def test_gathered_batchnorm_alone_equals_torch_and_keeps_its_names() -> None:
    plain, gathered = network(), network()
    convert_batchnorm(gathered)
    assert plain.state_dict().keys() == gathered.state_dict().keys()
    x = whole(8, 3, 6, 6)
    torch.testing.assert_close(gathered(x), plain(x))
    torch.testing.assert_close(gathered.state_dict(), plain.state_dict())


def test_conversion_shares_parameters_and_mode() -> None:
    net = network().eval()
    before = dict(net.named_parameters())
    convert_batchnorm(net)
    assert all(before[name] is parameter for name, parameter in net.named_parameters())
    assert not net[1].training
    convert_batchnorm(net)  # a second time changes nothing more
    assert sum(isinstance(module, GatheredBatchNorm) for module in net) == 2


def test_what_cannot_be_converted_is_said() -> None:
    with pytest.raises(ValueError, match="Wrap it"):
        convert_batchnorm(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="track_running_stats"):
        convert_batchnorm(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))


def test_half_precision_statistics_are_kept_in_32_bits() -> None:
    norm = GatheredBatchNorm(3)
    y = norm((whole(64, 3)).to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert norm.running_mean is not None and norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(y.float().mean(0), torch.zeros(3), atol=0.02, rtol=0)
