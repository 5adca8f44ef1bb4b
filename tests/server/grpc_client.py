"""A gRPC client of the server's services."""

from typing import Any

import grpc

from torchport.server.grpc import messages

INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"
OPEN_INFERENCE = "inference.GRPCInferenceService"
ANSWERS = {
    f"/{INFERENCE}/Ping": messages.inference.TorchServeHealthResponse,
    f"/{INFERENCE}/Predictions": messages.inference.PredictionResponse,
    f"/{INFERENCE}/StreamPredictions": messages.inference.PredictionResponse,
    f"/{INFERENCE}/StreamPredictions2": messages.inference.PredictionResponse,
    f"/{OPEN_INFERENCE}/ServerLive": messages.open_inference.ServerLiveResponse,
    f"/{OPEN_INFERENCE}/ServerReady": messages.open_inference.ServerReadyResponse,
    f"/{OPEN_INFERENCE}/ServerMetadata": messages.open_inference.ServerMetadataResponse,
    f"/{OPEN_INFERENCE}/ModelReady": messages.open_inference.ModelReadyResponse,
    f"/{OPEN_INFERENCE}/ModelMetadata": messages.open_inference.ModelMetadataResponse,
    f"/{OPEN_INFERENCE}/ModelInfer": messages.open_inference.ModelInferResponse,
    f"/{OPEN_INFERENCE}/ModelStatistics": messages.open_inference.ModelStatisticsResponse,
    f"/{OPEN_INFERENCE}/ModelConfig": messages.open_inference.ModelConfigResponse,
    f"/{OPEN_INFERENCE}/RepositoryIndex": messages.open_inference.RepositoryIndexResponse,
}
WRITTEN: dict[str, Any] = {
    "request_serializer": lambda message: (
        message if isinstance(message, bytes) else message.SerializeToString()
    )
}


class Client:
    """`call` is a method of one answer, `stream` one of many, `exchange` one of many requests too. What
    a method of management answers is its `msg`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def method(self, path: str, kind: str = "unary_unary") -> Any:
        answer = ANSWERS.get(path, messages.management.ManagementResponse)
        return getattr(self.channel, kind)(path, response_deserializer=answer.FromString, **WRITTEN)

    def call(self, service: str, name: str, message: Any, **options: Any) -> Any:
        return self.method(f"/{service}/{name}")(message, **{"timeout": 30, **options})

    def predict(self, model: str, *, version: str = "", **fields: Any) -> bytes:
        return self.call(INFERENCE, "Predictions", prediction(model, version, **fields)).prediction

    def manage(self, name: str, **values: Any) -> str:
        request = getattr(messages.management, f"{name}Request")(**values)
        return self.call(MANAGEMENT, name, request).msg

    def infer(self, **values: Any) -> Any:
        return self.call(OPEN_INFERENCE, "ModelInfer", messages.open_inference.ModelInferRequest(**values))


def prediction(model: str, version: str = "", *, sequence_id: str | None = None, **fields: bytes) -> Any:
    return messages.inference.PredictionsRequest(
        model_name=model, model_version=version, input=fields, sequence_id=sequence_id
    )
