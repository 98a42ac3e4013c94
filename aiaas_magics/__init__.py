"""AI as a service for notebook users: `%load_ext aiaas_magics`, then `%%aiaas_train`."""

from __future__ import annotations
