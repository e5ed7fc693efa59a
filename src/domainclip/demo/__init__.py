"""A first result without data of one's own: pictures that come with a package, captioned and split."""

from domainclip.demo.pictures import build_demo_data

__all__ = ["build_demo_data"]
