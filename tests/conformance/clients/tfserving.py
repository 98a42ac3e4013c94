"""tensorflow-serving-api, the stubs that TensorFlow Serving's users call, with TensorFlow's own tensors."""

from __future__ import annotations

import grpc
import tensorflow as tf
from telling import Telling
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
    status_pb2,
)


def spec(model, **more):
    return model_pb2.ModelSpec(name=model, **more)


def code(function):
    try:
        function()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


with Telling() as tell:
    metadata = (("authorization", tell.bearer),)
    tell.compare(
        classification_pb2, get_model_metadata_pb2, get_model_status_pb2, input_pb2, model_pb2, predict_pb2, regression_pb2, status_pb2
    )
    channel = grpc.insecure_channel(tell.grpc)
    predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    models = model_service_pb2_grpc.ModelServiceStub(channel)

    for model, arrays in tell.inputs.items():
        request = predict_pb2.PredictRequest(model_spec=spec(model, signature_name="serving_default"))
        for name, array in arrays.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array.tolist() if array.dtype == object else array))
        answer = predictions.Predict(request, 30, metadata=metadata)
        tell.answered("predict", model, {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()})
        if model == "article":
            tell.answered("float_val", model, {"y": [[value] for value in answer.outputs["y"].float_val]})
            tell.saw(version=answer.model_spec.version.value)
        request.model_spec.version.value = 1
        request.output_filter.append(tell.outputs[model][0])
        answer = predictions.Predict(request, 30, metadata=metadata)
        tell.saw(**{f"{model}_filtered": sorted(answer.outputs)})

    same = predict_pb2.PredictRequest(model_spec=spec("sums"))
    same.inputs["a"].CopyFrom(tf.make_tensor_proto(1.5, shape=(2, 2)))
    same.inputs["b"].CopyFrom(tf.make_tensor_proto(2, shape=(2, 2)))
    tell.saw(one_for_all=tf.make_ndarray(predictions.Predict(same, 30, metadata=metadata).outputs["total"]).tolist())

    asked = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec("sums"), metadata_field=["signature_def"])
    told = predictions.GetModelMetadata(asked, 30, metadata=metadata)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert told.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    status = models.GetModelStatus(get_model_status_pb2.GetModelStatusRequest(model_spec=spec("sums")), 30, metadata=metadata)
    tell.saw(
        inputs={
            name: [tf.as_dtype(info.dtype).name, [dim.size for dim in info.tensor_shape.dim]] for name, info in signature.inputs.items()
        },
        method=signature.method_name,
        status=[
            [s.version, get_model_status_pb2.ModelVersionStatus.State.Name(s.state), s.status.error_code]
            for s in status.model_version_status
        ],
    )

    rows = tell.inputs["article"]["x"]
    features = [tf.train.Features(feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=row))}) for row in rows.tolist()]
    given = input_pb2.Input(example_list=input_pb2.ExampleList(examples=[tf.train.Example(features=each) for each in features]))
    regressed = predictions.Regress(regression_pb2.RegressionRequest(model_spec=spec("article"), input=given), 30, metadata=metadata)
    tell.answered("regress", "article", {"y": [[each.value] for each in regressed.result.regressions]})
    classified = predictions.Classify(
        classification_pb2.ClassificationRequest(model_spec=spec("article"), input=given), 30, metadata=metadata
    )
    tell.answered("classify", "article", {"y": [[each.classes[1].score] for each in classified.result.classifications]})

    reload = model_management_pb2.ReloadConfigRequest()
    labelled = predict_pb2.PredictRequest(model_spec=spec("sums", version_label="gold"))
    tell.saw(
        no_token=code(lambda: predictions.Predict(request, 30)),
        no_model=code(lambda: predictions.Predict(predict_pb2.PredictRequest(model_spec=spec("nobody")), 30, metadata=metadata)),
        no_label=code(lambda: predictions.Predict(labelled, 30, metadata=metadata)),
        multi_inference=code(lambda: predictions.MultiInference(inference_pb2.MultiInferenceRequest(), 30, metadata=metadata)),
        reload=code(lambda: models.HandleReloadConfigRequest(reload, 30, metadata=metadata)),
    )
