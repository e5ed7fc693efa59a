"""Where the work runs: the device and its reason, its memory, its number formats, its settings."""

from domainclip.devices.comparison import Comparison, compare_with_cpu
from domainclip.devices.manager import DeviceManager, Fallback
from domainclip.devices.memory import MemoryManager, read_memory
from domainclip.devices.optimization import Optimization
from domainclip.devices.precision import Precision, PrecisionDecision, choose_precision, supported_precisions

__all__ = [
    "Comparison",
    "DeviceManager",
    "Fallback",
    "MemoryManager",
    "Optimization",
    "Precision",
    "PrecisionDecision",
    "choose_precision",
    "compare_with_cpu",
    "read_memory",
    "supported_precisions",
]
