import pytest

from fuseline.serve.process.cpu import this_cpu

XEON = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 fma avx512f avx512_vnni amx_int8 amx_tile\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp i8mm bf16\n"


@pytest.mark.parametrize(
    ("text", "features", "int8"),
    [
        (XEON + XEON.replace("avx512_vnni", ""), ("avx2", "fma", "avx512f", "avx512_vnni", "amx_int8"), 2),
        (ARM, ("bf16", "i8mm", "asimddp"), 2),
        ("", (), 0),
    ],
)
def test_what_linux_says_of_the_cpu_is_cut_down_to_what_matters(text, features, int8, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    cpu = this_cpu(tmp_path / "cpuinfo")
    assert cpu.features == features
    assert len(cpu.int8) == int8
    assert cpu.usable >= 1
    assert cpu.model == ("Intel(R) Xeon(R)" if "Intel" in text else cpu.model)


def test_where_it_cannot_be_told_that_is_said(tmp_path):
    cpu = this_cpu(tmp_path / "nothing")
    assert (cpu.features, cpu.int8) == (None, ())
