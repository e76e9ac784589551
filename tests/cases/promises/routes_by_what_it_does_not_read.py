# part: decode_router
# broken: reads_load
# says: for request |, but with all loads hidden
class Mine:
    reads_load = False

    def route(self, request, candidates):
        return min(range(len(candidates)), key=lambda index: candidates[index].tokens)
