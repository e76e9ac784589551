# says: answered a coroutine (async def?), allowed: a voltana.state.Decision
from voltana.state import Decision


class Mine:
    async def decide(self, load):
        return Decision(1410)
