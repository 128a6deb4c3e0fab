"""Output of `hardneg doctor` for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from . import show


def print_examination(found: dict[str, Any]) -> None:
    """Print what `hardneg.mining.doctor.examine` found."""
    console = show._console()
    machine, packages = found["machine"], found["packages"]
    table = _plain()
    show._row(
        table,
        "processor",
        f"{machine['processor']} ({', '.join(machine['instructions']) or 'no wide instructions known'})",
    )
    allowed = machine.get("cores_allowed", machine["cores"])
    show._row(table, "cores", f"{machine['cores']}, {allowed} of them allowed, torch uses {machine['threads']} threads")
    if "memory_bytes" in machine:
        show._row(table, "memory", _gigabytes(machine["memory_bytes"]))
    show._row(table, "free disk", _gigabytes(machine["disk_free_bytes"]))
    show._row(table, "system", machine["platform"])
    show._row(table, "versions", ", ".join(f"{name} {version}" for name, version in packages.items()))
    for name, each in found["optional"].items():
        show._row(table, name, each["version"] or f"not installed (for {each['for']})")
    show._show(console, "this machine", table)
    rates = Table()
    for name in ("device", "memory", "float32", "bfloat16", "float16"):
        rates.add_column(name, justify="left" if name == "device" else "right")
    for name, each in found["devices"].items():
        kinds = [each["gflops"].get(kind) for kind in ("float32", "bfloat16", "float16")]
        label = f"{name} (one core)" if name == "cpu" else f"{name} {each['name']} ({each['capability']})"
        memory = _gigabytes(each["memory_bytes"]) if "memory_bytes" in each else ""
        show._row(rates, label, memory, *("-" if rate is None else f"{rate:,.0f}" for rate in kinds))
    show._show(console, "products of matrices, GFLOP/s", rates)
    picks = Table()
    for name in ("by itself", "here", "why"):
        picks.add_column(name)
    for name, each in found["picks"].items():
        show._row(picks, name, each["pick"], each["why"])
    show._show(console, "what is picked", picks)
    if "encoder" in found:
        used = found["encoder"]
        show._print(console, f"{used['spec']}: {used['dimension']} components")
        for label, text in show.encoder_rows(used):
            show._print(console, f"{label}: {text}")
        if "precision_reason" in used:
            show._print(console, f"because {used['precision_reason']}")


def _plain() -> Table:
    return Table(show_header=False, box=None, padding=(0, 2, 0, 0))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
