"""Ahead-of-time compilation: the promises of the machine code, and that a broken one is found."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from infoseg_fast.bench import aot, latency, occupancy, roofline, tables
from infoseg_fast.bench.launches import cases_for, record
from infoseg_fast.bench.specialisation import Specialisation
from infoseg_fast.kernels import configs
from infoseg_fast.ops.record import Case

DOCS = Path(__file__).resolve().parent.parent / "docs" / "gpu_kernels.md"
MORE_THAN_FLOOR = ("appearance_statistics", "information_of_moments")
DTYPES = ("fp32", "bf16", "fp16", "fp64")
COMMAND = "run python -m infoseg_fast.bench.aot --docs docs/gpu_kernels.md"


def first(case: Case):
    return record(case)["forward"][0]


def shares() -> set[tuple[str, int]]:
    """Descriptions and capabilities: each variant for one target, each kernel for every target."""
    by_kernel: dict[str, list[str]] = {}
    for specialisation in aot.specialisations(cases_for("aot")):
        by_kernel.setdefault(specialisation.name, []).append(specialisation.described())
    targets = aot.CAPABILITIES
    # In turn, from another one for each kernel; where there are fewer variants than targets, again.
    return {
        (variants[i % len(variants)], targets[(i + first) % len(targets)])
        for first, variants in enumerate(by_kernel.values())
        for i in range(max(len(variants), len(targets)))
    }


@pytest.mark.long
def test_every_kernel_and_dtype_keeps_its_promises():
    """A third of all variants and targets: the command compiles all."""
    wanted = shares()
    found = aot.reports(
        ("aot",), aot.CAPABILITIES, 2, chosen=lambda s, capability: (s.described(), capability) in wanted
    )
    assert {(r.variant, r.capability) for r in found} == wanted
    assert [r for r in found if r.faults] == []
    instructions = {name for r in found for name in r.products}
    assert {"HMMA", "HGMMA", "UTCHMMA", "DMMA"} <= instructions  # mma, wgmma, tcgen05 and mma of float64
    documented = DOCS.read_text()
    for r in found:
        kernel, variant = r.variant.split(maxsplit=1)
        row = re.search(rf"^\| {kernel} \| {re.escape(variant)} \| (.*)$", documented, re.MULTILINE)[1].split(" | ")
        figures = [cell.split(" / ")[aot.CAPABILITIES.index(r.capability)] for cell in row[:3]]
        # Specialisations that differ in the dtype of their output alone share a line, with the most
        # registers.
        assert r.registers <= int(figures[0]), (r, COMMAND)
        assert figures[1:] == [f"{r.shared / 1024:.0f}", "+".join(sorted(r.products)) or "none"], (r, COMMAND)


@pytest.mark.parametrize(
    ("only", "capability"),
    [
        ("loss_forward bf16 without V without lse", 90),
        ("class_moments_forward bf16", 89),
        ("loss_image_gradient fp32 without V without by_partners without lse C=256", 120),
        ("refined_labels fp64", 86),
    ],
)
def test_a_sample_of_the_kernels_keeps_its_promises(only, capability):
    found = aot.reports(("aot",), [capability], 1, only)
    assert found and not any(r.faults for r in found) and all(r.resident > 0 for r in found)


def test_every_kernel_and_dtype_is_compiled_and_documented():
    found = aot.specialisations(cases_for("aot"))
    expected = {
        *itertools.product(("similarity_forward", "similarity_backward", "class_moments_forward"), DTYPES),
        *itertools.product(("projection_fold", "projection_gradient"), DTYPES),
        *itertools.product(("appearance_statistics_sums", "appearance_statistics_products"), ("fp32", "fp64")),
        *itertools.product(("information_of_moments", "refined_labels"), ("fp32", "fp64")),
        *itertools.product(("loss_forward", "loss_image_gradient", "loss_partner_gradient"), DTYPES[:3]),
        ("local_appearance_cells", "fp32"),
        ("local_appearance_texture", "fp32"),
    }
    assert expected <= {(s.name, s.dtype) for s in found}
    documented = DOCS.read_text()
    for specialisation in found:
        name, variant = specialisation.described().split(maxsplit=1)
        assert f"| {name} | {variant} |" in documented, COMMAND


def test_the_launches_of_the_latency_model_are_documented():
    documented = DOCS.read_text()
    chosen = latency.launches(latency.cases())
    assert {started.kernel.name for _, started in chosen} == {
        "loss_forward", "loss_image_gradient", "class_moments_forward", "similarity_backward",
        "projection_fold", "projection_gradient",
    }  # fmt: skip
    for case, started in chosen:
        line = latency.described(case, started)
        assert line in documented, "run python -m infoseg_fast.bench.latency --docs docs/gpu_kernels.md"


def test_programs_of_a_multiprocessor():
    # Capability, registers, KB of shared memory, warps and programs, as the occupancy calculator of
    # the CUDA toolkit: registers, shared memory, warps and programs are the limit in turn.
    for capability, registers, shared, num_warps, programs in (
        (90, 219, 36, 4, 2), (90, 168, 0, 4, 3), (90, 128, 0, 8, 2), (90, 129, 0, 8, 1),
        (80, 32, 88, 4, 1), (90, 32, 88, 4, 2), (86, 32, 100, 4, 0),
        (86, 32, 0, 8, 6), (90, 16, 0, 1, 32),
    ):  # fmt: skip
        assert occupancy.resident_programs(capability, registers, shared << 10, num_warps) == programs
    assert occupancy.waves(90, 264, 2) == 1


def test_too_little_in_flight_and_half_a_wave_are_found():
    case = Case("", op="mutual_information_loss", settings={"balance": 1.0})
    started = first(case)
    kept = aot.Report("k", "v", "fp32", 90, 128, 0, 0, 0, {"HMMA": 1}, 4, 1.0, 2, 48 << 10, [])
    specialisation = Specialisation.of(started)
    tile = 64 * 32 * 4
    assert occupancy.features_under_way(specialisation, 4 * tile, True) == 3 * tile  # of four stages
    assert occupancy.features_under_way(specialisation, 2 * tile, True) == 2 * tile
    assert occupancy.features_under_way(specialisation, 4 * tile, False) == tile
    assert aot.faults(kept, specialisation) == []
    short = dataclasses.replace(kept, in_flight=24 << 10)
    assert aot.faults(short, specialisation) == ["24 KB of features in flight of 29"]
    assert aot.faults(dataclasses.replace(short, capability=80), specialisation) == []
    many = first(dataclasses.replace(case, settings={"estimator": "infonce", "num_negatives": "all"}))
    assert aot.faults(short, Specialisation.of(many)) == []  # products are its limit

    half = dataclasses.replace(kept, resident=8)
    assert latency.Row(case, started, kept).faults == []
    assert latency.Row(case, started, half).faults == ["512 programs are 0.48 waves"]
    no_more = dataclasses.replace(started, arguments=started.arguments | {"P": 512})  # one tile a program
    assert latency.Row(case, no_more, half).faults == []


def test_what_spills_is_found():
    wide = configs.Config({"BLOCK_P": 128, "BLOCK_C": 64}, num_warps=4, num_stages=3)
    started = first(Case("", op="assign", K=27))
    spilling = dataclasses.replace(started, constexprs=started.constexprs | wide.blocks, config=wide)
    found = aot.report(Specialisation.of(spilling), 80)
    assert found.stack > 0 and found.local > 0 and found.faults[0].startswith("spills")


def test_products_without_tensor_cores_and_narrow_loads_are_found():
    started = first(Case("", op="assign", K=15))
    started.constexprs["PRECISION"] = "ieee"
    found = aot.report(Specialisation.of(started), 80)
    assert "no tensor-core instruction" in found.faults

    # The strides allow wide loads, but the alignment of the addresses is unknown.
    started = first(Case("", op="assign", K=15))
    unaligned = dataclasses.replace(Specialisation.of(started), aligned=())
    found = aot.report(unaligned, 80)
    assert [fault for fault in found.faults if "128-bit global loads" in fault]


def test_too_much_shared_memory_is_found():
    specialisation = Specialisation.of(first(Case("", op="assign")))
    kept = aot.Report("k", "v", "fp32", 80, 64, 0, 0, 100 * 1024, {"HMMA": 1}, 4, 1.0, 1, 48 * 1024, [])
    assert aot.faults(kept, specialisation) == []
    assert aot.faults(dataclasses.replace(kept, capability=86), specialisation) == [
        "needs 102400 bytes of shared memory of 101376"
    ]
    assert aot.faults(dataclasses.replace(kept, products={}, stack=8), specialisation) == [
        "spills: 8 bytes of stack, 0 local loads and stores",
        "no tensor-core instruction",
    ]


def test_reading_sass():
    sass = """
        /*0010*/ LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        /*0020*/ @P0 LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0030*/ LDG.E R4, [R2.64] ;
        /*0040*/ LDG.E.U8 R4, [R2.64] ;
        /*0050*/ LDGDEPBAR ;
        /*0060*/ LDL.64 R4, [R1] ;
        /*0070*/ UTCHMMA gdesc[UR4] ;
        /*0080*/ HMMA.1688.F32.TF32 R4, R4, R5, R6 ;
    """
    assert aot.load_widths(sass) == [16, 16, 4, 1]
    assert aot.LOCAL.findall(sass) == ["LDL"]
    assert aot.TENSOR_CORE.findall(sass) == ["UTCHMMA", "HMMA"]


def test_the_command_prints_json_and_fails_on_a_fault(capsys, monkeypatch):
    assert aot.main(["--json", "--only", "sum_partials_kernel fp32", "--capability", "90", "--jobs", "1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["kernel"] == "sum_partials_kernel" and found["registers"] > 0 and found["faults"] == []
    monkeypatch.setitem(aot.SHARED_MEMORY, 90, -1)
    assert aot.main(["--only", "sum_partials_kernel fp32", "--capability", "90", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    assert "shared memory" in printed.err and "1 with a fault" in printed.out
    with pytest.raises(SystemExit, match="2"):
        aot.main(["--only", "nosuch"])
    assert "--only nosuch: no specialisation" in capsys.readouterr().err


def test_a_table_goes_between_its_marks(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- aot -->\nold\n<!-- /aot -->\nafter\n")
    tables.write(file, "aot", "new")
    assert file.read_text() == "before\n<!-- aot -->\nnew\n<!-- /aot -->\nafter\n"
    with pytest.raises(SystemExit, match="one place for the table 'roofline', and holds 0"):
        tables.write(file, "roofline", "new")


def test_the_ops_move_at_most_15_percent_more_than_their_floor():
    found = roofline.rows(cases_for("roofline"))
    assert roofline.above_floor(found) == []
    documented = roofline.as_markdown(roofline.in_docs(found))
    assert documented in DOCS.read_text(), "run python -m infoseg_fast.bench.roofline --docs docs/gpu_kernels.md"
    for r in found:
        if not r.op.startswith("segment"):  # these write a low-resolution volume, see kernels/segment.py
            # The floor of class_moments omits V, which is kept for the backward pass: K / C of f.
            # appearance_statistics reads y twice, since all of it must be read before the first
            # product. information_of_moments adds terms in float64, among a few KB.
            more = (r.op == "class_moments" and r.C == 128) or r.op in MORE_THAN_FLOOR
            assert 1 <= r.ratio <= (1.2 if more else roofline.MAX_RATIO), r


def test_the_command_of_the_cost_model(capsys):
    assert roofline.main(["--json", "--op", "segment"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["op"] for row in rows} == {"segment", "projection"}
    assert all(row["moved"] >= row["floor"] for row in rows)
    assert roofline.main(["--op", "assign"]) == 0
    assert "bound H100 SXM, ms" in capsys.readouterr().out


def test_moving_more_than_the_floor_allows_fails():
    kept = roofline.rows(cases_for("roofline")[:1])[0]
    loss = dataclasses.replace(kept, op="mutual_information_loss", moved=116, floor=100)
    assert roofline.above_floor([loss]) and not roofline.above_floor([dataclasses.replace(loss, moved=114)])
