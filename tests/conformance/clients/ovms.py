"""ovmsclient over HTTP and gRPC. It has no place for a token: that goes into its session, and into its channel."""

from __future__ import annotations

import grpc
import numpy as np
from ovmsclient import make_http_client
from ovmsclient.tfs_compat.grpc.serving_client import GrpcClient
from ovmsclient.tfs_compat.protos.tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from telling import Telling


class Token(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, bearer):
        self._metadata = (("authorization", bearer),)

    def intercept_unary_unary(self, continuation, details, request):
        class With(grpc.ClientCallDetails):
            method, timeout, metadata, credentials = details.method, details.timeout, self._metadata, details.credentials
            wait_for_ready, compression = details.wait_for_ready, details.compression

        return continuation(With(), request)


with Telling() as tell:
    tell.compare(tensor_pb2, tensor_shape_pb2, get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2)
    over_http = make_http_client(tell.http)
    tell.refused("http_no_token", lambda: over_http.get_model_status("article"))
    over_http.session.headers["Authorization"] = tell.bearer
    channel = grpc.intercept_channel(grpc.insecure_channel(tell.grpc), Token(tell.bearer))
    stubs = prediction_service_pb2_grpc.PredictionServiceStub(channel), model_service_pb2_grpc.ModelServiceStub(channel)
    over_grpc = GrpcClient(channel, *stubs)
    tell.inputs["text"]["x"] = np.char.decode(tell.inputs["text"]["x"].astype(np.bytes_))  # the kind of strings that it takes
    for name, client in (("http", over_http), ("grpc", over_grpc)):
        for model, arrays in tell.inputs.items():
            for call, version in (("latest", 0), ("version", 1)):
                outputs = client.predict(arrays, model, version)
                if not isinstance(outputs, dict):  # of an only output it gives the array alone
                    outputs = {tell.outputs[model][0]: outputs}
                tell.answered(f"{name} {call}", model, outputs)
        tell.saw(
            **{
                f"{name}_status": client.get_model_status("article"),
                f"{name}_metadata": client.get_model_metadata("sums"),
            }
        )
        tell.refused(f"{name}_no_model", lambda client=client: client.predict(tell.inputs["article"], "nobody"))
        tell.refused(f"{name}_no_version", lambda client=client: client.get_model_status("article", 9))
