"""Which requests ask for another protocol."""

from __future__ import annotations

import pytest

from gateway.errors import NotImplementedHere
from gateway.routing.upgrade import refuse_upgrade


@pytest.mark.parametrize(
    ("connection", "upgrade", "refused"),
    [
        pytest.param("Upgrade", "websocket", True, id="websocket"),
        pytest.param("keep-alive, UPGRADE", "WebSocket", True, id="among others, in capitals"),
        pytest.param("upgrade", "h2c, websocket", True, id="behind an offer"),
        pytest.param("upgrade", "TLS/1.0", True, id="anything"),
        pytest.param("upgrade, http2-settings", "h2c", False, id="h2c is an offer"),
        pytest.param("notupgradeable", "websocket", False, id="not named by Connection"),
        pytest.param(None, "websocket", False, id="no Connection"),
        pytest.param("upgrade", "", False, id="empty"),
    ],
)
def test_upgrade(connection, upgrade, refused):
    env = {"HTTP_UPGRADE": upgrade} | ({"HTTP_CONNECTION": connection} if connection else {})
    if not refused:
        refuse_upgrade(env)
        return
    with pytest.raises(NotImplementedHere):
        refuse_upgrade(env)
