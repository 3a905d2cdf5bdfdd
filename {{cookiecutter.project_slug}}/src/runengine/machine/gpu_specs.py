"""What GPUs can reach at most, as their maker says: dense products, and accumulation in float32, as PyTorch computes.

Datasheets since Ampere also print the rate for matrices that are half zeros. It is twice as high, and not used here.
Names are those of `torch.cuda.get_device_name`. A chip whose maker publishes no figures is not listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DATA_CENTER = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center"
RESOURCES = "https://resources.nvidia.com"
VOLTA = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
T4 = f"{DATA_CENTER}/tesla-t4/t4-tensor-core-product-brief.pdf"
A10 = f"{DATA_CENTER}/a10/pdf/a10-datasheet.pdf"
A30 = "https://www.nvidia.com/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"
A40 = "https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
A100 = f"{DATA_CENTER}/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf"
A100_40GB = f"{DATA_CENTER}/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
WHITEPAPERS = "https://images.nvidia.com/aem-dam"
ADA_PRO = f"{WHITEPAPERS}/en-zz/Solutions/technologies/NVIDIA-ADA-GPU-PROVIZ-Architecture-Whitepaper_1.1.pdf"
ADA = f"{WHITEPAPERS}/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
RTX_50 = f"{WHITEPAPERS}/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
L4 = f"{RESOURCES}/en-us-gpu-resources/l4-tensor-datasheet"
L40S = f"{RESOURCES}/en-us-l40s/l40s-datasheet-28413"
H100 = "https://www.nvidia.com/en-us/data-center/h100/"
H100_PCIE = f"{RESOURCES}/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
H200 = "https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446"
GH200 = f"{RESOURCES}/en-us-data-center-overview-mc/en-us-data-center-overview/grace-hopper-superchip-datasheet-partner"
BLACKWELL = "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703"

HALF_RATE = "accumulation in float16 is twice as fast, but not what PyTorch does"


@dataclass(frozen=True)
class Chip:
    """One line of a datasheet. Rates in TFLOP/s (10^12 floating-point operations a second), None: it lacks the type.

    Args:
        pattern: of the device's full name.
        fp32: of the ordinary units; the others are of the tensor cores.
        memory_gb_s: in GB/s (10^9 bytes a second), reading and writing together.
        source: where the maker says so.
        note: what must be known to compare with it.
    """

    pattern: str
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float
    fp8: float | None
    memory_gb_s: float
    source: str
    note: str = ""

    def tflop_s(self, dtype: str) -> float | None:
        rate: float | None = getattr(self, dtype)
        return rate


CHIPS = (
    #    name                                     fp32   tf32   bf16   fp16   fp8    GB/s   source
    Chip(r"Tesla V100-SXM2-(16|32)GB",            15.7,  None,  None,  125.0, None,  900,   VOLTA),
    Chip(r"Tesla V100-PCIE-(16|32)GB",            14.0,  None,  None,  112.0, None,  900,   VOLTA),
    Chip(r"Tesla V100S-PCIE-32GB",                16.4,  None,  None,  130.0, None,  1134,  VOLTA),
    Chip(r"(Tesla|NVIDIA) T4",                    8.1,   None,  None,  65.0,  None,  320,   T4,
         "70 W: long products slow its clock down"),
    Chip(r"NVIDIA A10",                           31.2,  62.5,  125.0, 125.0, None,  600,   A10),
    Chip(r"NVIDIA A30",                           10.3,  82.0,  165.0, 165.0, None,  933,   A30),
    Chip(r"NVIDIA A40",                           37.4,  74.8,  149.7, 149.7, None,  696,   A40),
    Chip(r"(NVIDIA )?A100-(SXM4|PCIE)-40GB",      19.5,  156.0, 312.0, 312.0, None,  1555,  A100_40GB),
    Chip(r"(NVIDIA )?A100-SXM4-80GB",             19.5,  156.0, 312.0, 312.0, None,  2039,  A100),
    Chip(r"(NVIDIA )?A100 80GB PCIe",             19.5,  156.0, 312.0, 312.0, None,  1935,  A100),
    Chip(r"NVIDIA L4",                            30.3,  60.0,  121.0, 121.0, 242.0, 300,   L4,
         "72 W: long products slow its clock down"),
    Chip(r"NVIDIA L40S",                          91.6,  183.0, 362.0, 362.0, 733.0, 864,   L40S),
    Chip(r"(NVIDIA )?RTX A6000",                  38.7,  77.4,  154.8, 154.8, None,  768,   GA102),
    Chip(r"NVIDIA RTX 6000 Ada Generation",       91.1,  182.1, 364.2, 364.2, 728.5, 960,   ADA_PRO),
    Chip(r"(NVIDIA )?GeForce RTX 3090",           35.6,  35.6,  71.0,  71.0,  None,  936,   GA102, HALF_RATE),
    Chip(r"NVIDIA GeForce RTX 4090",              82.6,  82.6,  165.2, 165.2, 330.3, 1008,  ADA, HALF_RATE),
    Chip(r"NVIDIA GeForce RTX 5090",              104.8, 104.8, 209.5, 209.5, 419.0, 1792,  RTX_50, HALF_RATE),
    Chip(r"NVIDIA H100 PCIe",                     51.0,  378.0, 756.0, 756.0, 1513., 2000,  H100_PCIE),
    Chip(r"NVIDIA H100 80GB HBM3",                67.0,  494.5, 989.5, 989.5, 1979., 3350,  H100),
    Chip(r"NVIDIA H100 NVL",                      60.0,  417.5, 835.5, 835.5, 1670., 3900,  H100),
    Chip(r"NVIDIA H200",                          67.0,  494.5, 989.5, 989.5, 1979., 4800,  H200),
    Chip(r"NVIDIA H200 NVL",                      60.0,  417.5, 835.5, 835.5, 1670., 4800,  H200),
    Chip(r"(NVIDIA )?GH200 480GB",                67.0,  494.5, 989.5, 989.5, 1979., 4000,  GH200),
    Chip(r"(NVIDIA )?GH200 144G HBM3e",           67.0,  494.5, 989.5, 989.5, 1979., 4900,  GH200),
    Chip(r"NVIDIA B200",                          75.0,  1100., 2250., 2250., 4500., 7700,  BLACKWELL,
         "as in HGX B200; earlier prints of the datasheet say 80 TFLOP/s in fp32 and 8000 GB/s"),
)  # fmt: skip


def published(device_name: str) -> Chip | None:
    """The chip of this name. A slice of one (MIG) has another name, and is not listed."""
    return next((chip for chip in CHIPS if re.fullmatch(chip.pattern, device_name)), None)
