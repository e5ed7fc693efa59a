"""What is particular to a domain, each choice with its reason: shipped, or the user's own. Never imports torch."""

from domainclip.domains.domain import DomainConfig
from domainclip.domains.files import load_domain, shipped_domains

__all__ = [
    "DomainConfig",
    "load_domain",
    "shipped_domains",
]
