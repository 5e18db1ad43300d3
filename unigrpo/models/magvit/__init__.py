from .configuration import MagvitV2Config
from .modeling import MagvitV2


__all__ = ["MagvitV2", "MagvitV2Config"]
