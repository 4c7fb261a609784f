"""Records of the memory suite made by hand, in the form that the runner writes them."""

import random

MIXERS = [
    "bmru", "cmru", "acmru", "fqbmru", "lru", "rglru", "mingru", "mamba2", "attention", "gru", "rglru+bmru", "lru bmru",
]  # fmt: skip
TOO_LONG = "attention: its cost grows with the square of the length; longest 8192"


def record(tests, task="copy_first_50", mixer="bmru", seed=0, form="quick", changed=None, settings=None, **fields):
    return {
        "task": task,
        "form": form,
        "mixer": mixer,
        "seed": seed,
        "settings": {"lr": 0.003, "width": 64, "threshold_init": 1.0, **(changed or {}), **(settings or {})},
        "steps": 400,
        "rows": 32,
        "changed": changed or {},
        "parameters": 100_744,
        "loss": 0.01,
        "tests": tests,
        "seconds_training": 7.5,
        "seconds_testing": 1.0,
        "versions": {"hybridlm": "0.1.0", "torch": "2.13.0"},
        "threads": 1,
        "device": "cpu",
        **fields,
    }


def errors(name, length, wrong, asked=1000, rows=None):
    """A test of classes; rows None: one answer a sequence."""
    rows = asked if rows is None else rows
    return {"name": name, "length": length, "rows": rows, "asked": asked, "wrong": wrong, "right": max(0, rows - wrong)}


def squares(name, length, mse, rows=128):
    return {"name": name, "length": length, "rows": rows, "asked": rows, "mse": mse}


def failing(length, limit=32_768, name="failing length"):
    """length None: no failure up to the limit."""
    found = {"name": name, "length": limit, "rows": 512, "asked": 40_000, "wrong": 70, "failing": length}
    return found if length else {**found, "right": 512, "wrong": 0}


def skipped(name, length, reason=TOO_LONG):
    return {"name": name, "length": length, "rows": 32, "skipped": reason}


def suite(seeds=(0, 1, 2), form="quick", mixers=MIXERS):
    """Every family of tasks, with numbers drawn at random around each mixer's own quality."""
    draw = random.Random(0)
    made = []
    for number, mixer in enumerate(mixers):
        quality = 10 ** -(4 * ((number * 5) % 12) / 11)
        for seed in seeds:
            for task, make in _TASKS.items():
                tests = [make_one(mixer, min(1.0, quality * draw.uniform(0.5, 2))) for make_one in make]
                lost = mixer == "cmru" and seed == 1 and task == "corridor"
                fields = {"parameters": 90_000 + 1000 * number, "loss": None if lost else 0.01}
                made.append(record(tests, task, mixer, seed, form, **fields))
    return made


def _mse(name, length, harder):
    return lambda mixer, q: _long(mixer, name, length) or squares(name, length, min(1.1, q * harder))


def _rate(name, length, harder, asked=1000, rows=None):
    return lambda mixer, q: (
        _long(mixer, name, length) or errors(name, length, round(asked * min(0.875, q * harder)), asked, rows)
    )


def _long(mixer, name, length):
    return skipped(name, length) if mixer == "attention" and length > 8192 else None


def _fails(mixer, q):
    length = int(40 / q)
    return failing(None if length > 32_768 else length)


def _three(one, steps):
    return [one(f"{factor}x", factor * steps + 1, factor**0.6) for factor in (1, 10, 100)]


_FORMAL = ("parity", "modular_counting", "dyck1_depth", "dyck2_depth", "z2", "z16", "s3", "s4", "a5", "flip_flop_dense")
_TASKS = {
    **{f"copy_first_{steps}": _three(_mse, steps) for steps in (50, 100, 300, 600)},
    **{f"copy_first_symbol_{steps}": _three(_rate, steps) for steps in (50, 100, 300, 600)},
    "denoising": _three(_mse, 400),
    "denoising_late": _three(_mse, 400),
    "flip_flop": [
        _rate("1x", 512, 1e-3, 2**16, 512),
        *(_rate(f"sparse {length:,}", length, 1e-2 * length / 512, 2**16, 64) for length in (512, 2048, 8192)),
        *(_rate(f"dense {length:,}", length, 1e-3 * length / 512, 2**18, 64) for length in (512, 2048, 8192)),
    ],
    **{
        f"mnist{kind}": [_rate("test", 1784, 1, 10_000)]
        for kind in ("", "_permuted", "_blank", "_permuted_blank", "_full", "_full_permuted_blank")
    },
    "selective_copying": [_rate(f"{factor}x", factor * 256, factor, 4096, 256) for factor in (1, 4, 16)],
    "mqar": [_rate(name, length, 1, 4096, 256) for name, length in (("1x", 64), ("4x", 256), ("2x pairs", 256))],
    "corridor": _three(_rate, 100),
    "corridor_two": [_rate(f"{f}x {cue}", f * 100, f**0.5) for f in (1, 10, 100) for cue in ("first", "second")],
    "text": [_rate(*test, 1, 256) for test in (("1x", 144), ("1k", 1064), ("10k", 10_064), ("100k", 100_064))],
    **{task: [_rate("1x", 64, 0.1, 32_768, 512), _fails] for task in _FORMAL},
}
