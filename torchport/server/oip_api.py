from __future__ import annotations

from torchport.server.errors import ResourceNotFound


class OipApi:
    def __init__(self, api):
        pass

    def answer(self, request):
        raise ResourceNotFound
