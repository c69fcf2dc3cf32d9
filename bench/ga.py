"""The genetic algorithm of Hu et al. 2018 on one layer of 256 channels: time, and error reached.

    python bench/ga.py          about half a minute on two cores

Q of a random 3x3 conv, 256 to 64, on correlated inputs, one row per calibration image; half the channels go. 100
chromosomes, 50 generations, no early stop; Q is made before the clock starts. Errors are relative to that of the greedy
solution for the same Q, medians over five layers; the genetic algorithm tries about 5000 choices too. `one by one`
evaluates a population in a loop over its members, turn by turn with the one tensor operation.
"""

from statistics import median
from time import perf_counter

import torch
from tabulate import tabulate

from reprune.methods.ga import Genetic, OutputError, error_matrix, greedy, quadratic

CHANNELS, OUTPUTS, KERNEL, REMOVALS = 256, 64, 9, 128
POPULATION, GENERATIONS, LAYERS, TURNS = 100, 50, 5, 5


def layer(images: int, seed: int) -> torch.Tensor:
    """Q of eq. 2, [CHANNELS, CHANNELS], from one position of each image."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(CHANNELS // 4, CHANNELS, generator=generator)
    x = (torch.randn(images, KERNEL, CHANNELS // 4, generator=generator) @ mixed).relu()      # channels correlate
    x = x.transpose(1, 2).reshape(images, CHANNELS * KERNEL)
    weight = torch.randn(OUTPUTS, CHANNELS, KERNEL, generator=generator)
    return error_matrix((x.T @ x / images).double(), weight.double())


def evolved(q: torch.Tensor, seed: int, **options) -> tuple[float, float]:
    """Seconds, and the error reached."""
    search = Genetic(error=OutputError(), population=POPULATION, generations=GENERATIONS, patience=GENERATIONS,
                     **options)
    start = perf_counter()
    keep = search.evolve(q, REMOVALS, seed)
    return perf_counter() - start, error(keep[:1], q)


def error(keep: torch.Tensor, q: torch.Tensor) -> float:
    return quadratic((~keep).to(q), q).min().item()


def chosen_at_random(q: torch.Tensor, seed: int, n: int) -> float:
    """The least error of n choices."""
    order = torch.rand(n, CHANNELS, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return error(order >= REMOVALS, q)


def one_by_one(removed: torch.Tensor, q: torch.Tensor) -> list[float]:
    return [(z @ q @ z).item() for z in removed]


def seconds(way, *args) -> float:
    start = perf_counter()
    for _ in range(20):
        way(*args)
    return (perf_counter() - start) / 20


@torch.no_grad()
def main() -> list[dict]:
    few, many = layer(100, 0), layer(2000, 0)
    taken = {"100": [], "2000": []}
    evolved(few, 0)                                               # warm-up
    for turn in range(TURNS):                                     # turn by turn: times drift
        taken["100"].append(evolved(few, turn)[0])
        taken["2000"].append(evolved(many, turn)[0])
    lines = [{"what": f"one layer, Q from {n} images", "seconds": round(median(t), 2),
              "ms a generation": round(1000 * median(t) / GENERATIONS, 1)} for n, t in taken.items()]

    layers = [many, *(layer(2000, seed) for seed in range(1, LAYERS))]
    ways = {"greedy": lambda q, s: error(greedy(q, REMOVALS)[None], q),
            "random": lambda q, s: chosen_at_random(q, s, 1),
            "random, the best of 5000": lambda q, s: chosen_at_random(q, s, POPULATION * GENERATIONS),
            "genetic": lambda q, s: evolved(q, s)[1],
            "genetic, seed_greedy": lambda q, s: evolved(q, s, seed_greedy=True)[1]}
    base = [ways["greedy"](q, s) for s, q in enumerate(layers)]
    for name, way in ways.items():
        relative = median(way(q, s) / base[s] for s, q in enumerate(layers))
        lines.append({"what": name, "error / greedy": round(relative, 3)})

    removed = (torch.rand(POPULATION, CHANNELS, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    assert torch.allclose(quadratic(removed, many), torch.tensor(one_by_one(removed, many), dtype=torch.float64))
    slow, fast = zip(*((seconds(one_by_one, removed, many), seconds(quadratic, removed, many)) for _ in range(TURNS)),
                     strict=True)
    ratio = median(a / b for a, b in zip(slow, fast, strict=True))
    return lines + [{"what": "a population, one by one", "ms a generation": round(1000 * median(slow), 2)},
                    {"what": "a population at once", "ms a generation": round(1000 * median(fast), 2),
                     "times faster": round(ratio, 1)}]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
