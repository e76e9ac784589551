# part: prefill_router
# says: for request 0 that arrived at |answered 2, allowed: the index of a candidate, 0 to 1
class Mine:
    def route(self, request, candidates):
        return len(candidates)
