# says: ask_when_idle_s=-1, allowed: None, or a number of seconds above 0
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410, ask_when_idle_s=-1)
