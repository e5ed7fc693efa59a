"""The HTTP service: a model that answers for years (``domainclip serve``, extra ``serve``)."""
