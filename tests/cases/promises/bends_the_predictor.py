# broken: no mutation
# says: it changed the predictor, which all instances share
from voltana.state import Decision


class Mine:
    def __init__(self, predictor):
        self.predictor = predictor

    def decide(self, load):
        self.predictor.about["seen"] = 1
        return Decision(1410)
