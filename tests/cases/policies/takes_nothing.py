# says: raised TypeError: Mine.decide() takes 1 positional argument but 2 were given
# above: TypeError: Mine.decide() takes 1 positional argument but 2 were given
class Mine:
    def decide(self):
        return None
