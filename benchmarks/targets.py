"""What the CPU kernels are measured against: which ratio has to reach what, on the main shape."""

from typing import Any

MAIN = "B=1 K=2 C=2048 53x53 float32"


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets that a result of kernel_speed.py has the rows for.

    Each: ``what``, ``value`` (a ratio), ``must``, ``goal`` (None where there is none), ``at_least`` (else at most).
    """
    rows = {row["name"]: row for row in result["cases"]}
    found: list[dict[str, Any]] = []

    def add(what: str, value: float | None, must: float, goal: float | None = None, at_least: bool = True) -> None:
        if value is not None:
            found.append({"what": what, "value": value, "must": must, "goal": goal, "at_least": at_least})

    def times(op: str) -> dict[str, float]:
        row = rows.get(f"{op} {MAIN}")
        return {name: time["p50"] for name, time in row["ms"].items()} if row else {}

    def over(op: str, baseline: str) -> float | None:
        ms = times(op)
        return ms[baseline] / ms["ours"] if baseline in ms else None

    add("inner_opt, compiled / ours", over("inner_opt", "compiled"), 4.5, 6.5)
    add("inner_opt, naive / ours", over("inner_opt", "naive"), 300)
    ms = times("inner_opt")
    if "one step" in ms:
        per_step = (ms["ours"] - ms["one step"]) / 9
        add("inner_opt, a step / read sweep", per_step / ms["read sweep"], 2.5, 1.8, at_least=False)
    add("inner_opt fwd+bwd, eager / ours", over("inner_opt fwd+bwd", "eager"), 12, 18)
    row = rows.get(f"inner_opt fwd+bwd {MAIN}")
    if row:
        share = row["extra_peak_mib"] / row["features_mib"]
        add("inner_opt fwd+bwd, extra memory / features", share, 0.25, at_least=False)
    add("masked_avg_pool, eager / ours", over("masked_avg_pool", "eager"), 2)
    ms = times("masked_avg_pool")
    add("masked_avg_pool, ours / read sweep", ms["ours"] / ms["read sweep"] if ms else None, 4, at_least=False)
    add("cosine_cross_entropy fwd+bwd, naive / ours", over("cosine_cross_entropy fwd+bwd", "naive"), 30)
    add("cosine_cross_entropy fwd+bwd, eager / ours", over("cosine_cross_entropy fwd+bwd", "eager"), 6)
    overhead = result.get("call_overhead_us", {})
    for op, us in overhead.items():
        if op != "x.clone()":
            add(f"tiny call of {op}, ours / clone", us / overhead["x.clone()"], 3, at_least=False)
    return found


def met(verdict: dict[str, Any], level: str = "must") -> bool:
    """Whether the target's ``level`` ("must" or "goal") is reached."""
    limit = verdict[level]
    if limit is None:
        return True
    return bool(verdict["value"] >= limit if verdict["at_least"] else verdict["value"] <= limit)
