import pytest

from segquant.base import hardware

AMD = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu fma avx2 {more} sha_ni

processor\t: 1
model name\t: AMD EPYC
flags\t\t: fpu fma avx2 {more} sha_ni
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "Path", lambda _: file)
    return file


def test_processors_of_the_same_name_differ_by_their_instructions(cpuinfo):
    probes = []
    for more in ("rdseed", "avx512f avx512_vnni avx512_bf16"):
        cpuinfo.write_text(AMD.format(more=more))
        probes.append(hardware.probe())
    old, new = probes
    assert old["processor"] == new["processor"] == "AMD EPYC"
    assert old["instructions"] == ["avx2"]
    assert new["instructions"] == ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"]


def test_arm_lists_features_and_a_system_without_cpuinfo_has_none(cpuinfo):
    cpuinfo.write_text("Features\t: fp asimd asimddp bf16\n")
    assert hardware.probe()["instructions"] == ["asimd", "asimddp", "bf16"]
    cpuinfo.unlink()
    assert hardware.probe()["instructions"] == []


def test_who_made_the_processor_and_what_a_budget_is_solved_by_are_known(cpuinfo):
    cpuinfo.write_text("vendor_id\t: GenuineIntel\n")
    assert hardware.vendor() == "GenuineIntel"
    assert "scipy" in hardware.environment()


def test_two_probes_are_equal():
    assert hardware.probe() == hardware.probe()
