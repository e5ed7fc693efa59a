"""Where a model comes from: what a recipe's name means, what a folder is, and whether its files can be used.

Nothing here imports torch or transformers, so that a wrong name or folder is answered before they are loaded.
"""

from domainclip.models.source.name import find_model

__all__ = ["find_model"]
