# part: decode_router
# says: for request |raised AttributeError: 'tuple' object has no attribute 'sort' (|allowed: the index of a candidate
# above: in route
class Mine:
    def route(self, request, candidates):
        candidates.sort()
        return 0
