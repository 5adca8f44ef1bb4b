"""A subclass of TorchServe's `BaseHandler` around a TorchScript model: rows of numbers in, rows out."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class SumsHandler(BaseHandler):
    def preprocess(self, data):
        return torch.as_tensor([row.get("data") or row.get("body") for row in data], device=self.device)

    def describe_handle(self):
        return {"takes": "rows of 3 numbers", "on": str(self.device)}

    def explain_handle(self, data_preprocess, raw_data):
        return data_preprocess.tolist()
