# part: decode_router
# says: for request |answered None, allowed: the index of a candidate, 0 to 1
class Mine:
    def route(self, request, candidates):
        print("no return")
