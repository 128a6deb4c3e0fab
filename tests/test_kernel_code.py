"""The kernel's machine code for Hopper, which needs no GPU to be made: matrix units, the copy engine, wide stores, no spills."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import NO_TRITON

if importlib.util.find_spec("triton") is None:
    pytest.skip(NO_TRITON, allow_module_level=True)

SCRIPT = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hardneg.losses.fused import _FLAGS
from hardneg.losses.kernel import weigh_tiles

FORMATS = {"weights": "bf16", "redo": "i32", "counts": "i32", "ids_mine": "i64", "ids_theirs": "i64",
           "groups_mine": "i64", "groups_theirs": "i64"}
FACTORS = {"rows": "ROWS", "columns": "COLUMNS", "guide_rows": "ROWS", "guide_columns": "COLUMNS",
           "sketch_rows": "ROWS", "sketch_columns": "COLUMNS"}
fixed = {"REDO": False, "STORE": True, "TOTALS": False, "WEIGHTED": False, **_FLAGS, "OWN_COLUMNS": 1, "depth": 768,
         "guide_depth": 64, "sketch_depth": 256, "DEPTH": 64, "GUIDE_DEPTH": 64, "SKETCH_DEPTH": 64, "TOGETHER": 8,
         "PRECISION": "ieee", "BESIDE": "tf32x3", "COPIED": True, **json.loads(sys.argv[1])}
options = {name: fixed.pop(name) for name in ("num_warps", "num_stages")}
signature, constants, attributes = {}, {}, {}
for i, name in enumerate(weigh_tiles.arg_names):
    if name in fixed:
        signature[name], constants[(i,)] = "constexpr", fixed[name]
    elif name in FACTORS and (name in ("rows", "columns") or name.startswith("sketch") and fixed["SUSPECTED"]):
        signature[name] = f"tensordesc<bf16[{fixed[FACTORS[name]]}, 64]>"
    elif name in ("n", "m", "stride", "first_row", "own_first", "programs"):
        signature[name] = "i32"
        if name == "stride":
            attributes[(i,)] = [["tt.divisibility", 16]]
    elif name in ("intercept", "sketch_limit"):
        signature[name] = "fp32"
    else:
        signature[name] = "*" + FORMATS.get(name, "bf16" if name in FACTORS else "fp32")
        attributes[(i,)] = [["tt.divisibility", 16]]
source = ASTSource(fn=weigh_tiles, signature=signature, constexprs=constants, attrs=attributes)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
ptx = made.asm["ptx"]
assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
    file.write(ptx)
    file.flush()
    said = subprocess.run([assembler, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"], capture_output=True, text=True)
print(json.dumps({
    "matrix units": len(re.findall("wgmma.mma_async", ptx)),
    "copy engine": len(re.findall("cp.async.bulk.tensor", ptx)),
    "single stores": len(re.findall(r"st\\.global\\.b16", ptx)),
    "wide stores": len(re.findall(r"st\\.global\\.v4", ptx)),
    "spills": sum(int(x) for x in re.findall(r"(\\d+) bytes spill stores", said.stderr)),
}))
"""

MASKED = {"LIMITED": True, "IDS_MINE": 1, "IDS_THEIRS": 1}
SHAPE = {"ROWS": 128, "COLUMNS": 128, "num_warps": 4, "num_stages": 3, "STAYS": False}
BESIDE = {"ROWS": 128, "COLUMNS": 128, "num_warps": 8, "num_stages": 4, "STAYS": True, "SUSPECTED": True}


@pytest.mark.parametrize(
    ("flags", "most_spilled"),
    [pytest.param({**SHAPE, **MASKED}, 0, marks=pytest.mark.slow), ({**BESIDE, **MASKED, "THRESHOLD": True}, 256)],
    ids=["ids and margin", "and a posterior"],
)
def test_the_code_for_hopper(flags: dict[str, Any], most_spilled: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(flags)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["matrix units"] > 0
    assert found["copy engine"] > 0
    assert found["single stores"] == 0
    assert found["wide stores"] > 0
    assert found["spills"] <= most_spilled
