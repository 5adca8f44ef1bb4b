"""Continues texts character by character; all live requests take each step together.

    curl -N --json '{"prompt": "twinkle", "length": 60}' http://127.0.0.1:8080/predictions/characters
    curl -N -H 'Accept: text/event-stream' --json '{"prompt": "up"}' http://127.0.0.1:8080/predictions/characters

`prompt` is text of the letters that the model knows, `length` the number of characters to add (40).
"""

import numpy as np

import torchport_runtime as runtime

MAX_LENGTH = 100_000


class CharacterGenerator(runtime.Handler):
    """Steps one GRU cell for all live rows. A row's state is what it reads next, and its hidden state."""

    def setup(self):
        self.letters = self.options["letters"]

    def decode(self, request):
        """The tensors of the first step: the prompt's first character, and no memory."""
        prompt, _ = self._read(request)
        size = self.signature.inputs["hidden"].shape[1]
        first = np.array([self.letters.index(prompt[0])], np.int64)
        return {"character": first, "hidden": np.zeros((1, size), np.float32)}

    def encode(self, request, outputs):
        """The most likely letter after one step."""
        return self.letters[int(outputs["logits"][0].argmax())]

    def join(self, row):
        prompt, length = self._read(row.request)
        tensors = self.read(row.request)
        row.state = {"unread": prompt[1:], "left": length, **tensors}

    def step(self, rows):
        names = ("character", "hidden")
        outputs = self.infer("main", {n: np.concatenate([row.state[n] for row in rows]) for n in names})
        likely = outputs["logits"].argmax(axis=1)
        for index, row in enumerate(rows):
            state = row.state
            state["hidden"] = outputs["new_hidden"][index : index + 1]
            if state["unread"]:
                letter, state["unread"] = state["unread"][0], state["unread"][1:]
            else:
                letter = self.letters[likely[index]]
                row.send(letter)
                state["left"] -= 1
            state["character"] = np.array([self.letters.index(letter)], np.int64)
            if state["left"] == 0:
                row.end()

    def _read(self, request):
        asked = request.json()
        if not isinstance(asked, dict) or not isinstance(asked.get("prompt"), str) or not asked["prompt"]:
            raise runtime.BadRequest('an object with a text is expected: {"prompt": "twinkle"}')
        unknown = set(asked["prompt"]) - set(self.letters)
        if unknown:
            raise runtime.BadRequest(f"prompt: the model knows no {min(unknown)!r}, only {self.letters!r}")
        length = asked.get("length", 40)
        if type(length) is not int or not 1 <= length <= MAX_LENGTH:
            raise runtime.BadRequest(f"length: a whole number from 1 to {MAX_LENGTH} is expected")
        return asked["prompt"], length
