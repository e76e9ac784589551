# says: raised RecursionError: maximum recursion depth exceeded
# above: [Previous line repeated
class Mine:
    def decide(self, load):
        return self.decide(load)
