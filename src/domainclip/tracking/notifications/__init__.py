"""Messages to people about a run, over a queue on disk: sent once each, in order, without holding the run up."""

from domainclip.tracking.notifications.listener import notifications
from domainclip.tracking.notifications.targets import Target, targets_of

__all__ = ["Target", "notifications", "targets_of"]
