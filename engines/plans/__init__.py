"""The cache of compiled plans: a folder that several processes share, and that a kill at any moment leaves usable.

A plan lies beside a small JSON that describes it, both named by the digest of their key. Whoever builds one holds a
lock that the kernel releases when its process ends; what is found without such a lock and without both its files was
left by a process that died.
"""

from __future__ import annotations

from unibrain_rt.engines.plans.cache import PlanCache
from unibrain_rt.engines.plans.defaults import LIMIT_BYTES, default_folder, size_from_text
from unibrain_rt.engines.plans.folder import PlanRecord
from unibrain_rt.engines.plans.key import KERNELS, PlanKey

__all__ = ["KERNELS", "LIMIT_BYTES", "PlanCache", "PlanKey", "PlanRecord", "default_folder", "size_from_text"]
