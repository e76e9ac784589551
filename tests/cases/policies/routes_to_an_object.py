# part: decode_router
# says: answered InstanceLoad(clock_mhz=|allowed: the index of a candidate, 0 to 1
class Mine:
    def route(self, request, candidates):
        return min(candidates, key=lambda load: load.tokens)
